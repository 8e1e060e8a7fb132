"""What data sets with sound share: a second of samples as a spectrogram."""

import numpy as np

from ...common.settings import InputError

FLOOR = 80  # dB below a full scale of 1; whatever is quieter is 0
ROWS = 64  # transformed at a time


def log_mel(samples: np.ndarray, ticks: int, mels: int) -> np.ndarray:
    """A log-mel spectrogram of each second: (N, rate) floats in [-1, 1] -> (N, ticks, mels) uint8.

    0 stands for -80 dB and less, 255 for 0 dB, in equal steps; a sine of amplitude 1 reaches 0 dB. Windows (Hann) are
    two ticks long, and centred on their tick; filters are HTK's triangles, from 0 Hz to half the rate. The sample's
    mean does not count. It is reckoned in doubles, so that machines that round otherwise make the same bytes. Raises
    InputError where filters are so narrow that one would hear nothing.
    """
    rate = samples.shape[1]
    size = max(2, round(2 * rate / ticks))
    filters = mel_filters(rate, size // 2 + 1, mels)  # (bins, mels)
    if not filters.any(axis=0).all():
        raise InputError(f"`mels` {mels} is too fine for {ticks} ticks a second at {rate} Hz; lower one of the two")
    window = np.hanning(size + 1)[:-1]
    starts = np.round((np.arange(ticks) + 0.5) * rate / ticks - size / 2).astype(int) + size
    places = starts[:, None] + np.arange(size)  # (ticks, size), in the padded second

    spectrograms = np.empty((len(samples), ticks, mels), np.uint8)
    for row in range(0, len(samples), ROWS):
        x = samples[row : row + ROWS].astype(np.float64)
        x = np.pad(x - x.mean(axis=1, keepdims=True), ((0, 0), (size, size)))
        amplitude = np.abs(np.fft.rfft(x[:, places] * window)) * (2 / window.sum())  # (n, ticks, bins)
        decibels = 10 * np.log10(amplitude**2 @ filters + 1e-12)
        spectrograms[row : row + ROWS] = np.round(255 * (1 + decibels / FLOOR).clip(0, 1))
    return spectrograms


def mel_filters(rate: int, bins: int, mels: int) -> np.ndarray:
    """Triangles of height 1 whose corners are equally far apart in HTK's mel, 2595 log10(1 + f / 700): (bins, mels)."""
    highest = 2595 * np.log10(1 + rate / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, highest, mels + 2) / 2595) - 1)  # in Hz
    frequency = np.linspace(0, rate / 2, bins)[:, None]
    low, peak, high = corners[:-2], corners[1:-1], corners[2:]
    rising, falling = (frequency - low) / (peak - low), (high - frequency) / (high - peak)
    return np.minimum(rising, falling).clip(0)
