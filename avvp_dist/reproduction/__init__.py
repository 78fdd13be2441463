"""The paper's tables in one command, and what other sweeps share with it.

`jobs.py` runs chains of commands that resume; `recipes.py` and `table_format.py` serve the tables
and the studies. A row of the tables is an entry of `rows.py` and a config in `configs/finetune`:
adding one changes nothing else.
"""
