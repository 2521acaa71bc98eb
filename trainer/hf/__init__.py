"""Hugging Face's causal and masked models, from a folder, as layers. Nothing else imports `transformers`.

attention.py   masks whose presence does not depend on numbers
folder.py      what a model's folder holds, and what is refused
weights.py     each layer's weights from safetensors files
build.py       the model as a list of layers
"""
