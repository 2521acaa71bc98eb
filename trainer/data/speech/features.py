"""Log-mel features of recordings: how much sound there is in each band of frequencies, frame by frame.

Windows and bands are given in seconds and hertz, so recordings of different sampling rates give features that
compare. Each recording is normalised on its own: over its frames, every band has mean 0 and deviation 1.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.errors import UserError

VERSION = 1  # increase it when the same recording would give other features
_FLOOR = 1e-6  # of a band's mean power, where a full-scale sine has 1/8
_LEAST_DEVIATION = 1e-3


@dataclass(frozen=True)
class Bands:
    """What features are made of.

    Attributes:
        number: Bands of a frame.
        lowest: The lower end of the first band, in hertz.
        highest: The upper end of the last band, in hertz.
        window: Length of a frame, in seconds.
        hop: From the beginning of a frame to that of the next, in seconds.
    """

    number: int
    lowest: float
    highest: float
    window: float
    hop: float


def import_soundfile() -> Any:
    """Return the library that reads recordings.

    Raises:
        UserError: It is not installed.
    """
    try:
        import soundfile  # noqa: PLC0415  (optional)
    except (ImportError, OSError) as error:  # the second: without the library in C
        raise UserError(f"data=speech needs soundfile: pip install soundfile ({error})") from error
    return soundfile


def read_features(path: Path, bands: Bands) -> Tensor:
    """Return the features of a recording, float32 [frames, bands].

    Raises:
        UserError: It cannot be read, is empty, or was sampled too seldom for the highest band.
    """
    soundfile = import_soundfile()
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, RuntimeError) as error:  # soundfile's own errors are RuntimeErrors
        raise UserError(f"{path} cannot be read as a recording: {error}") from error
    if not len(samples):
        raise UserError(f"{path} is a recording without samples: remove it and its transcript")
    if rate < 2 * bands.highest:
        raise UserError(
            f"{path} has {rate} samples a second, too few for data.highest={bands.highest:g} Hz: lower it "
            f"to {rate / 2:g}"
        )
    return log_mel(torch.from_numpy(samples).mean(1), rate, bands)


def log_mel(samples: Tensor, rate: int, bands: Bands) -> Tensor:
    """Return the normalised features of a signal.

    Args:
        samples: float32 [samples], from -1 to 1.
        rate: Samples a second.
        bands: The bands.

    Returns:
        float32 [frames, bands]; the first frame is centred at the first sample.
    """
    length, hop = round(bands.window * rate), round(bands.hop * rate)
    size = 1 << (length - 1).bit_length()
    window = torch.hann_window(length)
    spectrum = torch.stft(
        samples, size, hop, length, window, center=True, pad_mode="constant", return_complex=True
    )
    power = spectrum.abs().square() / window.sum().square()
    logs = (mel_filters(rate, size, bands) @ power + _FLOOR).log().T
    mean, deviation = logs.mean(0), logs.std(0, correction=0)
    return ((logs - mean) / (deviation + _LEAST_DEVIATION)).contiguous()


@lru_cache
def mel_filters(rate: int, size: int, bands: Bands) -> Tensor:
    """Return triangular filters [bands, 1 + size / 2] over a spectrum, equally wide on the mel scale.

    The mel scale is O'Shaughnessy's (1987), 2595 log10(1 + hertz / 700), and each filter has height 1, as in
    HTK (The HTK Book, 5.4), Kaldi and torchaudio.
    """
    ends = torch.tensor([bands.lowest, bands.highest], dtype=torch.float64)
    low, high = (2595 * torch.log10(1 + ends / 700)).tolist()
    mels = torch.linspace(low, high, bands.number + 2, dtype=torch.float64)
    edges = 700 * (10 ** (mels / 2595) - 1)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bins = torch.linspace(0, rate / 2, 1 + size // 2, dtype=torch.float64)
    rising, falling = (bins - left) / (centre - left), (right - bins) / (right - centre)
    return torch.minimum(rising, falling).clamp(min=0).float()
