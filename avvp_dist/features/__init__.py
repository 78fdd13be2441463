"""Features of media: decoding of pictures and sound, and the backbones that describe them by name.

A backbone is added as a file of `backbones/` without a look elsewhere. What a file of media is cut
into, its clock and its bounds are `decoding`'s own.
"""
