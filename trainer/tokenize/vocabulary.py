"""Vocabularies of the tokenizers library, trained on text.

- byte-level BPE, as GPT-2's (Radford et al. 2019, https://cdn.openai.com/better-language-models/
  language_models_are_unsupervised_multitask_learners.pdf, section 2.2): any text, nothing unknown
- WordPiece, as BERT's (Devlin et al. 2018, https://arxiv.org/abs/1810.04805), with its special tokens
"""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from trainer.config.schema import TokenizeConfig
from trainer.data.pieces import Piece, TextSource, cut
from trainer.errors import UserError

_END = "<|endoftext|>"
_UNKNOWN = "[UNK]"
_BERT = ("[PAD]", _UNKNOWN, "[CLS]", "[SEP]", "[MASK]")
_BYTES = 256  # tokens that byte-level BPE begins with


def train_vocabulary(text: list[TextSource], config: TokenizeConfig) -> int:
    """Train a vocabulary on text, and write its file; return the number of its tokens.

    Args:
        text: Where the text is; all of it is read.
        config: The kind and the size, and the file to write, which must not exist.

    Raises:
        UserError: The text cannot be read, the file exists or cannot be written, or the size is too small.
    """
    assert config.train is not None
    path = Path(config.train)
    if path.exists():
        raise UserError(f"tokenize.train={path} exists: give another file, or remove it")
    special = [*(_BERT if config.kind == "wordpiece" else (_END,)), *config.special]
    fewest = len(special) + (_BYTES if config.kind == "bpe" else 0)
    if config.size <= fewest:
        raise UserError(f"tokenize.size={config.size} is too small: {fewest} tokens are there from the start")
    pieces = [piece for each in text for piece in cut(each, each.find(), any_bytes=False)[0]]
    build = _wordpiece if config.kind == "wordpiece" else _bpe
    tokenizer = build(_texts(pieces), config, special)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(tokenizer.to_str(), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"tokenize.train={path} cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return int(tokenizer.get_vocab_size())


def _texts(pieces: list[Piece]) -> Iterator[str]:
    for piece in pieces:
        for segment in piece:
            for chunk, _ in segment.chunks({}):
                yield chunk


def _bpe(texts: Iterator[str], config: TokenizeConfig, special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.size,
        min_frequency=config.min_frequency,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=special,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _wordpiece(texts: Iterator[str], config: TokenizeConfig, special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token=_UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=config.lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.size,
        min_frequency=config.min_frequency,
        special_tokens=special,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", special.index("[SEP]")), ("[CLS]", special.index("[CLS]"))
    )
    return tokenizer
