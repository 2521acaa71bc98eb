"""The configuration of every model. To add a model: its module, and its declaration here."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from trainer.config.custom import CustomConfig
from trainer.config.fields import all_positive, below_one, one_number, one_of, plain, positive, text
from trainer.config.registry import choice


@dataclass
class ModelConfig:
    """What every model has."""

    name: str = plain(MISSING, "the model's name; `model=...` sets it")


@dataclass
class TransformerConfig(ModelConfig):
    """What transformers of tokens have in common."""

    blocks: int = positive(8, "transformer blocks")
    width: int = positive(128, "size of the hidden states")
    heads: int = positive(4, "attention heads of a block")
    context: int = positive(128, "length of a sample", unit="tokens")
    dropout: float = below_one(0.1, "share of the activations that dropout zeroes")
    positions: str = one_of("learned", ("learned", "rotary"), "how the model encodes positions")
    tied: bool = plain(True, "whether the head uses the embedding's weight")


@choice("model", build="trainer.models.gpt:gpt")
@dataclass
class GPTConfig(TransformerConfig):
    """A decoder-only transformer; its layers are the embedding, the blocks and the head."""

    name: str = "gpt"


@choice("model", build="trainer.models.simplenet:simplenet")
@dataclass
class SimpleNetConfig(ModelConfig):
    """Linear, ReLU, Linear: the example that tutorials of model parallelism start from."""

    name: str = "simplenet"
    features: int = positive(10, "input features; `data.features` must be equal")
    hidden: int = positive(20, "hidden units")


@choice("model", build="trainer.cut.build:module")
@dataclass
class ModuleConfig(CustomConfig, ModelConfig):
    """Any `nn.Module`, as it is: `target(**options)` returns it; it is cut at the entries of its blocks."""

    name: str = "module"
    blocks: list[str] = text(
        [],
        "paths of the parts to cut between, such as `[layer1,layer2]`; a list stands for its entries",
        "a list of paths, such as [layer1,layer2]",
    )
    output: str | None = plain(
        None, "which entry or attribute of the module's output the loss takes; null takes all of it"
    )


@choice("model", build="trainer.hf.build:hf")
@dataclass
class HFConfig(ModelConfig):
    """A causal or masked language model of Hugging Face's, from its folder."""

    name: str = "hf"
    path: str = plain(MISSING, "the model's folder: config.json, and safetensors files unless `load=config`")
    load: str = one_of("weights", ("weights", "config"), "`config` draws new weights instead of reading them")
    blocks: list[str] = text(
        [],
        "paths of the parts to cut between; an empty list takes the model's list of blocks",
        "a list of paths, such as [model.layers]",
    )
    context: int = positive(
        1024,
        "length of a sample; `${positions:}` is what the model has positions for, at most 1024",
        unit="tokens",
    )
    config: dict[str, Any] = plain({}, "values of config.json to change, such as `{num_hidden_layers: 4}`")
    attention: str = one_of("sdpa", ("sdpa", "eager"), "how attention is computed")
    experts: str = one_of("batched_mm", ("batched_mm", "eager"), "how mixtures of experts are computed")


@choice("model", build="trainer.models.bert:bert")
@dataclass
class BertConfig(TransformerConfig):
    """A transformer that sees both sides of a token; its layers are embedding, blocks and head."""

    name: str = "bert"
    norm: str = one_of(
        "post",
        ("post", "pre"),
        "where a block normalises: after it adds, as BERT does, or before it computes",
    )
    segments: int = positive(2, "segments that a sample may have")


@choice("model", build="trainer.models.speech:speech")
@dataclass
class SpeechConfig(ModelConfig):
    """Deep recurrent speech recognition: a front, recurrent layers and a head that writes letters (CTC)."""

    name: str = "speech"
    front: str = one_of(
        "conv", ("conv", "stack"), "what shortens the frames: convolutions, or stacking some into one"
    )
    stride: int = positive(2, "frames that become one")
    channels: int = positive(32, "channels of the convolutions")
    cell: str = one_of("lstm", ("lstm", "gru"), "the cells of the recurrent layers")
    layers: int = positive(5, "recurrent layers")
    width: int = positive(512, "units of a recurrent layer, in each direction")
    bidirectional: bool = plain(True, "whether recurrent layers also read from the end to the beginning")
    fused: bool = plain(
        False, "whether recurrent layers use torch's own kernels: faster on a GPU, but not deferred"
    )
    dropout: float = below_one(0.1, "share of the activations that dropout zeroes")


@dataclass
class ConvolutionalConfig(ModelConfig):
    """What the convolutional models have in common."""

    width: int = positive(64, "channels of the first part; each part that halves the image doubles them")
    norm: str = one_of(
        "batch",
        ("batch", "group"),
        "over what activations are normalised: a micro-batch, or channels of an image",
    )
    groups: int = positive(32, "groups of channels, with `norm=group`")
    dropout: float = below_one(0.0, "share of the activations that dropout zeroes, in one place")


@choice("model", build="trainer.models.resnet:resnet")
@dataclass
class ResNetConfig(ConvolutionalConfig):
    """A residual network for images; its layers are the stem, the blocks and the head."""

    name: str = "resnet"
    depth: int = one_number(18, (18, 34, 50, 101, 152), "which of the paper's networks")
    parts: list[int] = all_positive([], "blocks of each part, such as `[2,2,2]`; an empty list: the depth's")
    block: str = one_of(
        "auto", ("auto", "basic", "bottleneck"), "the blocks; `auto` takes bottlenecks from a depth of 50 on"
    )
    stem: str = one_of(
        "large", ("large", "small"), "`large` divides the image by four first, as for photographs"
    )
    zero_last: bool = plain(False, "whether the last normalisation of every block starts at 0")


@choice("model", build="trainer.models.unet:unet")
@dataclass
class UNetConfig(ConvolutionalConfig):
    """A U-Net, which gives every pixel a class; its layers are levels down, a middle, levels up, a head."""

    name: str = "unet"
    levels: int = positive(4, "how often the image is halved; its sides must be divisible by 2 to this power")


@choice("model", build="trainer.models.custom:custom")
@dataclass
class CustomModelConfig(CustomConfig, ModelConfig):
    """A custom model: `target(data, **options)` returns a `trainer.models.model.Model`."""
