"""Serving: registered models as MLflow loads them, features or videos in, events or vectors out.

`parser.py` and `encoder.py` are the scripts that a registered model is loaded by, wherever that is:
they and all they import travel with the model (`tracking/packaging.py`). `model.py` is the frame
that they share, and answers may gain fields in the scripts alone. The columns of a request are read
in `requests.py`, and media files are decoded in `media.py`; only these two refuse them.
"""
