"""GGUF files, which llama.cpp reads: written by llama.cpp's own package, one tensor at a time."""

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.artifact import storage_errors
from potstill.errors import ModelError

if TYPE_CHECKING:
    from potstill.shipping.arches import Arch
    from potstill.shipping.vocabulary import Vocabulary

PLAIN_TYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
ROUNDED_TYPES = {"q8_0": "Q8_0", "q5_1": "Q5_1", "q5_0": "Q5_0", "q4_1": "Q4_1", "q4_0": "Q4_0"}
"""What the gguf package rounds to by itself, blocks of 32 numbers with a scale."""
LLAMA_TYPES = ("q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "q3_k_l", "q3_k_m", "q3_k_s", "q2_k")
"""What only llama.cpp itself rounds to."""
TYPES = (*PLAIN_TYPES, *ROUNDED_TYPES, *LLAMA_TYPES)
GET_GGUF = "Run pip install 'potstill[gguf]'"
GET_LLAMA = "Run pip install llama-cpp-python, which compiles llama.cpp for minutes, or choose q8_0, or another of " + (
    ", ".join((*PLAIN_TYPES, *ROUNDED_TYPES))
)
LARGEST_HALF = 65504.0


@dataclass(frozen=True)
class Naming:
    """What a file says of itself."""

    title: str
    licence: str = ""
    languages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Written:
    """A file that was written."""

    path: Path
    notes: tuple[str, ...]
    """What of it is not as one may expect, in sentences."""


def load_gguf() -> Any:
    """The package. ModelError where it is not there."""
    try:
        import gguf
    except ImportError as error:
        raise ModelError("--format gguf", "the gguf package is not installed", GET_GGUF) from error
    return gguf


def write_gguf(folder: Path, target: Path, kind: str, naming: Naming) -> Written:
    """The model in a folder of Hugging Face's layout as a GGUF file, its tokenizer in it.

    `kind` is one of TYPES. ModelError where llama.cpp would compute something else than transformers does.
    """
    from transformers import AutoConfig

    from potstill.shipping.arches import read_arch
    from potstill.sources import LocalModel, Model
    from potstill.tokens.tokenization import backend_of
    from potstill.training.models import end_tokens, load_tokenizer, quantized_by

    gguf, where = load_gguf(), f"model {folder.name}"
    config = AutoConfig.from_pretrained(folder)
    if method := quantized_by(config):
        what = f"its weights are rounded already ({method}), and would be rounded twice"
        raise ModelError(where, what, "Export the model that it was made of, with --gguf-type")
    arch = read_arch(config, where)
    model = Model(folder.name, LocalModel(path=str(folder)))
    tokenizer = load_tokenizer(model)
    ends = sorted({*end_tokens(model), tokenizer.eos_token_id} - {None})
    vocabulary = _checked_vocabulary(tokenizer, config.vocab_size, ends, backend_of(tokenizer))
    if kind in LLAMA_TYPES:
        llama = load_llama(kind)
        whole = target.with_name(f"{target.stem}.whole.gguf")
        notes = _write(gguf, whole, "f32", folder, arch, vocabulary, naming)
        _round(llama, whole, target, kind)
        whole.unlink()
        notes = (*notes, *_mixture(gguf, target))
    else:
        notes = _write(gguf, target, kind, folder, arch, vocabulary, naming)
    return Written(target, (*arch.notes, *vocabulary.notes, *notes))


def _checked_vocabulary(tokenizer: Any, rows: int, ends: list[int], backend: Any) -> "Vocabulary":
    """ModelError where llama.cpp would cut some text into other tokens."""
    from potstill.shipping.twin import difference, hard_texts
    from potstill.shipping.vocabulary import REMEDY, read_vocabulary

    vocabulary = read_vocabulary(tokenizer, rows, ends)
    pieces = [backend.decode([index], skip_special_tokens=False) for index in range(min(rows, len(tokenizer)))]
    if wrong := difference(vocabulary, backend, hard_texts(vocabulary, pieces)):
        raise ModelError(str(tokenizer.name_or_path), wrong, REMEDY)
    return vocabulary


def _write(
    gguf: Any, path: Path, kind: str, folder: Path, arch: "Arch", vocabulary: "Vocabulary", naming: Naming
) -> tuple[str, ...]:
    """The file; what of it could not be rounded as asked, in sentences."""
    name = {**PLAIN_TYPES, **ROUNDED_TYPES}[kind]
    logging.getLogger("gguf").setLevel(logging.WARNING)
    writer = gguf.GGUFWriter(path, arch.name)
    _describe(gguf, writer, name, arch, naming)
    _add_vocabulary(writer, vocabulary)
    wanted = gguf.GGMLQuantizationType[name]
    as_they_are: list[str] = []
    types: dict[str, Any] = {}
    for written, tensor in _tensors(gguf, folder, arch):
        types[written] = _type_of(gguf, tuple(tensor.shape), wanted)
        if types[written] != wanted and tensor.dim() > 1:
            as_they_are.append(written)
        size = _bytes_of(gguf, tuple(tensor.shape), types[written])
        writer.add_tensor_info(written, list(tensor.shape), tensor.numpy().dtype, size, types[written])
    try:
        with storage_errors(path):
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for written, tensor in _tensors(gguf, folder, arch):
                if types[written] == gguf.GGMLQuantizationType.F16 and float(tensor.abs().max()) > LARGEST_HALF:
                    what = f"its tensor {written} holds numbers beyond {LARGEST_HALF:,.0f}, which float16 has not"
                    raise ModelError(folder.name, what, "Choose --gguf-type bf16 or f32")
                writer.write_tensor_data(gguf.quants.quantize(tensor.numpy(), types[written]))
    finally:
        writer.close()
    if not as_they_are:
        return ()
    told = f"{len(as_they_are)} matrices whose rows are no multiple of a block of 32 are in float16 instead of {kind}."
    return (told,)


def _tensors(gguf: Any, folder: Path, arch: "Arch") -> Iterator[tuple[str, Any]]:
    from potstill.shipping.arches import read_tensors

    by_name = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(by_name[arch.name], arch.layers)
    return read_tensors(folder, arch, lambda name: table.get_name(name, try_suffixes=(".weight", ".bias")))


def _type_of(gguf: Any, shape: tuple[int, ...], wanted: Any) -> Any:
    """Vectors stay in float32, as llama.cpp has them; rows that no block divides in float16."""
    if len(shape) < 2:
        return gguf.GGMLQuantizationType.F32
    block, _ = gguf.GGML_QUANT_SIZES[wanted]
    return wanted if shape[-1] % block == 0 else gguf.GGMLQuantizationType.F16


def _bytes_of(gguf: Any, shape: tuple[int, ...], kind: Any) -> int:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return int(prod(shape) // block * size)


def _describe(gguf: Any, writer: Any, type_name: str, arch: "Arch", naming: Naming) -> None:
    writer.add_type("model")
    writer.add_name(naming.title)
    if naming.licence:
        writer.add_license(naming.licence)
    if naming.languages:
        writer.add_languages(list(naming.languages))
    for field, value in arch.fields.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
        add(f"{arch.name}.{field}", value)
    rounded = "ALL_F32" if type_name == "F32" else f"MOSTLY_{type_name}"
    writer.add_file_type(int(gguf.LlamaFileType[rounded]))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _add_vocabulary(writer: Any, vocabulary: "Vocabulary") -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.cut.pre if vocabulary.cut else "default")
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types(list(vocabulary.kinds))
    if vocabulary.model == "gpt2":
        writer.add_token_merges([" ".join(merge) for merge in vocabulary.merges])
    else:
        writer.add_token_scores(list(vocabulary.scores))
        writer.add_add_space_prefix(vocabulary.space_prefix)
    longer = {"unk": "unknown", "pad": "padding"}
    for name, token in (vocabulary.special or {}).items():
        writer.add_uint32(f"tokenizer.ggml.{longer.get(name, name)}_token_id", token)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(False)
    writer.add_chat_template(vocabulary.template)


def load_llama(kind: str) -> Any:
    """llama-cpp-python. ModelError where it is not there."""
    try:
        import llama_cpp
    except ImportError as error:
        what = f"only llama.cpp itself rounds to {kind}, and llama-cpp-python is not installed"
        raise ModelError("--gguf-type", what, GET_LLAMA) from error
    return llama_cpp


def _round(llama: Any, source: Path, target: Path, kind: str) -> None:
    """By llama.cpp, with the settings that its own program has."""
    llama._logger.set_verbose(False)
    settings = llama.llama_model_quantize_default_params()
    settings.ftype = getattr(llama, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
    settings.nthread = 1
    failed = llama.llama_model_quantize(str(source).encode(), str(target).encode(), settings)
    if failed or not target.is_file():
        raise ModelError(
            str(target), f"llama.cpp could not round to {kind} (code {failed})", "Choose q8_0, or free space"
        )


def _mixture(gguf: Any, path: Path) -> tuple[str, ...]:
    """Which types llama.cpp took: not one for all matrices, and another where rows are no multiple of its block."""
    types = Counter(tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors if len(tensor.shape) > 1)
    return (f"llama.cpp took for its matrices: {', '.join(f'{types[name]} {name}' for name in sorted(types))}.",)
