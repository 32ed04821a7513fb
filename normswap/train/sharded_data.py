"""WebDataset shards: tar files that each process reads its own share of, from the beginning on."""

from __future__ import annotations

import importlib
import io
import logging
import random
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image

from normswap import distributed
from normswap.errors import NormswapError, first_line, plain
from normswap.extras import install_command
from normswap.graph.graph import Array
from normswap.io.bounds import check_inflation
from normswap.io.data import LABELS, TAKEN_AS_ZEROS, Data, default_inputs, load_data
from normswap.io.images import SUFFIXES, known_preprocessing, prepare, required_image_input
from normswap.model import Model
from normswap.train.options import TrainOptions
from normswap.train.samples import Batches, Samples

_SHUFFLED = 1000  # samples that wait to be drawn from
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # others of Pillow's run programs
_NAMED = 5  # samples that are left out
_log = logging.getLogger(__name__)
Raw = dict[str, Any]


def shard_samples(
    pattern: str, model: Model, some: int, samples: int | None, skip_bad: bool = False
) -> Samples:
    """The samples of WebDataset shards, as ``shards-{0000..0003}.tar``, which are local files.

    A sample is an image (``.png``, ``.jpg``...), or an array for each input by its name
    (``.pixel_values.npy``), and perhaps a label (``.cls``). Each process reads every so-manieth
    shard, in an order drawn anew in each epoch, through a buffer that shuffles.
    ``skip_bad``: samples that cannot be used are left out, with warnings that name the first; the
    next ones fill their batches. They are found, and still counted, when they are first read.

    Raises NormswapError if webdataset is missing, for shards that are missing or damaged, fewer
    shards than processes, samples of another kind, and ``samples``, which shards cannot be cut to.
    """
    library = _webdataset(pattern)
    if samples is not None:
        raise NormswapError(f"{pattern}: --samples is not for shards; name fewer of them")
    files = [str(file) for file in library.shardlists.expand_urls(pattern)]
    for file in files:
        if not Path(file).is_file():
            raise NormswapError(f"{file}: there is no such shard; check the pattern {pattern}")
    if len(files) < distributed.world():
        raise NormswapError(
            f"{pattern}: {len(files)} shards for {distributed.world()} processes; start fewer, or "
            f"make more shards"
        )
    own = files[distributed.rank() :: distributed.world()]
    counts = distributed.gathered(sum(map(_count, own)))
    for number, count in enumerate(counts):
        if not count:
            raise NormswapError(f"{pattern}: the shards of process {number} hold no samples")
    decode = _Decoder(pattern, model)
    sift = _Sieve(pattern, decode) if skip_bad else iter
    head: dict[str, Array] | None = None
    if distributed.rank() == 0:
        head = decode(list(islice(sift(_read(library, files)), some)))
    head = distributed.from_first(head)
    assert head is not None
    labels = head.pop(LABELS, None)

    def batches(options: TrainOptions) -> Batches:
        share = options.batch // distributed.world()
        return _Stream(library, own, options.seed, share, decode, sift)

    return Samples(pattern, sum(counts), Data(head, labels), batches)


class _Stream:
    """The batch of a step: the next one without delay, another one by reading up to it again."""

    def __init__(
        self,
        library: ModuleType,
        files: Sequence[str],
        seed: int,
        share: int,
        decode: _Decoder,
        sift: Callable[[Iterator[Raw]], Iterator[Raw]],
    ) -> None:
        self._library, self._files, self._seed = library, files, seed
        self._share, self._decode, self._sift = share, decode, sift
        self._next: int | None = None
        self._samples: Iterator[Raw] = iter(())

    def __call__(self, step: int) -> dict[str, torch.Tensor]:
        if step != self._next:
            self._samples = self._endless()
            for _ in islice(self._samples, step * self._share):
                pass
        self._next = step + 1
        arrays = self._decode(list(islice(self._samples, self._share)))
        return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}

    def _endless(self) -> Iterator[Raw]:
        epoch = 0
        while True:
            draw = random.Random(f"{self._seed} {epoch}")
            files = list(self._files)
            draw.shuffle(files)
            shuffle = self._library.filters.shuffle(_SHUFFLED, initial=_SHUFFLED, rng=draw)
            yield from shuffle(self._sift(_read(self._library, files)))
            epoch += 1


class _Sieve:
    """The samples of an epoch without those that cannot be used.

    Until it has seen an epoch to its end, each is decoded once more for that. Raises NormswapError
    where none is left."""

    def __init__(self, pattern: str, decode: _Decoder) -> None:
        self._pattern, self._decode = pattern, decode
        self._bad: dict[tuple[str, str], str] = {}
        self._complete = False

    def __call__(self, samples: Iterator[Raw]) -> Iterator[Raw]:
        kept = 0
        for sample in samples:
            name = sample["__url__"], sample["__key__"]
            if not self._complete and name not in self._bad:
                self._try(name, sample)
            if name not in self._bad:
                kept += 1
                yield sample
        self._complete = True
        if not kept:
            first = next(iter(self._bad.values()), "there is none")
            raise NormswapError(f"{self._pattern}: no sample can be used; {first}")

    def _try(self, name: tuple[str, str], sample: Raw) -> None:
        try:
            self._decode.decoded([sample])
        except _Unusable as error:
            self._bad[name] = str(error).removeprefix(f"{self._pattern}: ")
            if len(self._bad) <= _NAMED:
                more = "; further ones are not named" if len(self._bad) == _NAMED else ""
                _log.warning("%s; it is left out%s", error, more)


class _Unusable(NormswapError):
    """What is wrong with a sample."""


class _Decoder:
    """Arrays by name, of a batch of samples. Raises NormswapError where one cannot be used."""

    def __init__(self, pattern: str, model: Model) -> None:
        self._pattern, self._model = pattern, model
        self._told = False  # of inputs that no sample has

    def __call__(self, samples: Sequence[Raw]) -> dict[str, Array]:
        try:
            return self.decoded(samples)
        except _Unusable as error:
            raise NormswapError(
                f"{error}; --skip-bad leaves such samples out (skip_bad= of distill in Python)"
            ) from error

    def decoded(self, samples: Sequence[Raw]) -> dict[str, Array]:
        """The same; what a sample is at fault for is raised as ``_Unusable``."""
        images = [_image(sample) for sample in samples]
        if all(image is not None for image in images):
            spec = required_image_input(self._pattern, self._model)
            preprocessing = known_preprocessing(self._pattern, self._model, spec)

            def opened(number: int) -> Image.Image:
                return Image.open(io.BytesIO(images[number] or b""), formats=_FORMATS)

            names = [sample["__key__"] for sample in samples]
            with self._unusable(self._pattern):
                feeds = {spec.name: prepare(self._pattern, names, opened, preprocessing, spec)}
        else:
            feeds = self._arrays(samples)
        if all("cls" in sample for sample in samples):
            feeds[LABELS] = self._labels(samples)
        return feeds

    def _arrays(self, samples: Sequence[Raw]) -> dict[str, Array]:
        names = {spec.name.lower(): spec.name for spec in self._model.inputs}
        found: dict[str, list[Array]] = {}
        for sample in samples:
            for key, value in sample.items():
                if (name := names.get(key.removesuffix(".npy"))) and key.endswith(".npy"):
                    found.setdefault(name, []).append(self._array(sample["__key__"], key, value))
        if not found or any(len(arrays) != len(samples) for arrays in found.values()):
            key = next((s["__key__"] for s in samples), "")
            raise _Unusable(
                f"{self._pattern}: not every sample, like {key}, holds an image or an array "
                f"({', '.join(f'.{name}.npy' for name in names)})"
            )
        try:
            stacked = {name: np.stack(arrays) for name, arrays in found.items()}
        except ValueError as error:
            key = samples[0]["__key__"]
            raise _Unusable(
                f"{self._pattern}: the arrays of {plain(key)} and those after it are of several "
                "shapes"
            ) from error
        for name, array in default_inputs(stacked, self._model).items():
            if not self._told:
                _log.warning(TAKEN_AS_ZEROS, self._pattern, name)
            self._told = True
            stacked[name] = array
        with self._unusable("data"):  # so does load_data call it
            return dict(load_data(stacked, self._model).feeds)

    @contextmanager
    def _unusable(self, where: str) -> Iterator[None]:
        try:
            yield
        except NormswapError as error:
            reason = str(error).removeprefix(f"{where}: ")
            raise _Unusable(f"{self._pattern}: {reason}") from error

    def _array(self, sample: str, key: str, content: bytes) -> Array:
        try:
            array = np.load(io.BytesIO(content), allow_pickle=False)
        except Exception as error:  # a damaged array can raise nearly anything
            raise _Unusable(
                f"{self._pattern}: {plain(sample)}.{plain(key)} is damaged ({first_line(error)})"
            ) from error
        if not isinstance(array, np.ndarray):
            raise _Unusable(f"{self._pattern}: {plain(sample)}.{plain(key)} is no array")
        return array

    def _labels(self, samples: Sequence[Raw]) -> Array:
        try:
            return np.array([int(sample["cls"]) for sample in samples], np.int64)
        except (ValueError, OverflowError) as error:
            reason = plain(first_line(error))
            raise _Unusable(f"{self._pattern}: a .cls holds no number: {reason}") from error


def _read(library: ModuleType, files: Sequence[str]) -> Iterator[Raw]:
    """The samples of the shards, undecoded. This process's share is chosen before."""
    try:
        yield from library.WebDataset(list(files), shardshuffle=False, nodesplitter=iter)
    except NormswapError:
        raise
    except Exception as error:  # webdataset raises whatever a damaged shard leads to
        raise NormswapError(
            f"{files[0]}...: a shard cannot be read ({first_line(error)})"
        ) from error


def _count(file: str) -> int:
    """The samples of a shard: its names up to the first dot."""
    try:
        with tarfile.open(file) as archive:
            keys, size = set(), 0
            for member in archive:
                if member.isfile():
                    keys.add(_key(member.name))
                    size += member.size
                    check_inflation(Path(file), size)
            return len(keys)
    except NormswapError:
        raise
    except Exception as error:  # a damaged header, or what it is packed with, may raise anything
        raise NormswapError(f"{file}: is no tar file ({first_line(error)})") from error


def _key(name: str) -> str:
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.partition('.')[0]}"


def _image(sample: Raw) -> bytes | None:
    return next((v for k, v in sample.items() if f".{k.lower()}".endswith(SUFFIXES)), None)


def _webdataset(pattern: str) -> ModuleType:
    try:
        return importlib.import_module("webdataset")
    except ImportError as error:
        raise NormswapError(
            f"{pattern}: shards need webdataset; {install_command('train')}"
        ) from error
