#!/bin/bash
# Trains on the hosts of the file beside this one, over ssh. From the repository's folder, on any of them or another:
#
#     launch/hosts/train.sh experiment=gpt2 data.path=corpus.txt
#
# HOSTS=<file> names another file. docs/clusters/hosts.md says what hosts need.
source .venv/bin/activate || exit 2
exec python -m trainer.launch --hostfile "${HOSTS:-launch/hosts/hosts}" "$@"
