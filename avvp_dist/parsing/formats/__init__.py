"""Forms of a timeline: data, labels for editors, subtitles, a picture, a page.

A new form is a file here and an entry of `table.FORMATS`. How a page looks is in `assets/`. Ids and
classes may be any text: `names.py` puts them on one line, and each form escapes them.
"""
