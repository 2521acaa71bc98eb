"""Small models of transformers' families, trained by `model=hf` on real ranks and compared with transformers.

configurations.py   a small configuration of every family
ranks.py            what every rank of a launch does
page.py             docs/families.md
__main__.py         `python -m tests.families`: launches 1, 2 and 4 ranks, and writes the page
"""
