"""Serving: registered models as MLflow loads them, features in, events or representations out.

`parser.py` and `encoder.py` are the scripts that a registered model is loaded by, wherever that is:
they and all they import travel with the model (`tracking/packaging.py`). Answers may gain fields
here alone. The columns of a request are read in `requests.py`, the only place that refuses them.
"""
