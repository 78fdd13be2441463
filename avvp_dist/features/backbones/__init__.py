"""Backbones by name: frozen networks that describe the pictures or the sound of a second.

A backbone is one file here and an entry of `registry.BACKBONES`; nothing else knows any of them.
Each has weights with a known hash, and its version is part of the extractor's name, so that
features of different weights are never mixed.
"""
