"""One side of bench/curation.py, in a process of its own: finds near duplicates in a file, prints one line of JSON.

    python bench/curation_peer.py SIDE DOCUMENTS.jsonl FOLDER THRESHOLD BANDS ROWS

`datatrove` is its MinHash pipeline (signatures, buckets, clusters, filter) in one process; `datasketch` does what
text-dedup does, with that library: a MinHash of 64-bit hashes of runs of three words a document, an LSH index of the
same bands, and of alike documents the first one stays.
"""

import json
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

RUN = 3


def ours(path: Path, folder: Path, threshold: float, bands: int, rows: int) -> list[str]:
    """As `curate` does it, a thousand documents at a time; the bands are those that the threshold asks for."""
    from potstill.curation.deduplicate import Deduplicator, fingerprints
    from potstill.curation.minhash import band_keys

    def text_at(row: int) -> str:
        file.seek(places[row])
        return str(json.loads(file.readline())["text"])

    known, names, places, texts = Deduplicator(folder / "duplicates", threshold), [], [0], []
    with path.open("rb") as file:
        for line in file:
            row = json.loads(line)
            names.append(row["id"])
            texts.append(row["text"])
            places.append(places[-1] + len(line))
            if len(texts) == 1000:
                known.add(fingerprints(texts), band_keys(texts, threshold))
                texts.clear()
        if texts:
            known.add(fingerprints(texts), band_keys(texts, threshold))
        return [names[duplicate.row] for duplicate in known.duplicates(text_at)]


def datasketch(path: Path, folder: Path, threshold: float, bands: int, rows: int) -> list[str]:
    """MinHash and MinHashLSH; candidates are compared by their signatures."""
    from datasketch import MinHash, MinHashLSH

    def runs() -> Iterator[list[bytes]]:
        for row in read():
            words = re.findall(r"\w+", row["text"].lower())
            yield list({" ".join(words[i : i + RUN]).encode() for i in range(max(1, len(words) - RUN + 1))})

    def read() -> Iterator[dict[str, str]]:
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)

    index = MinHashLSH(num_perm=bands * rows, params=(bands, rows))
    kept, dropped = {}, []
    for row, signature in zip(read(), MinHash.generator(runs(), num_perm=bands * rows, seed=1), strict=True):
        if any(signature.jaccard(kept[other]) >= threshold for other in index.query(signature)):
            dropped.append(row["id"])
        else:
            index.insert(row["id"], signature, check_duplication=False)
            kept[row["id"]] = signature
    return dropped


def datatrove(path: Path, folder: Path, threshold: float, bands: int, rows: int) -> list[str]:
    """Its four steps, each by the local executor with one task."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.logging import logger
    from datatrove.utils.text import TextNormConfig
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Plain(WordTokenizer):
        """The words that the others see; its own tokenizers are slower."""

        def word_tokenize(self, text: str) -> list[str]:
            return re.findall(r"\w+", text)

        def sent_tokenize(self, text: str) -> list[str]:
            return [text]

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return [(0, len(text))]

    logger.remove()
    plain = TextNormConfig(True, *[False] * 6)  # lower case alone: the least that it can do to a text
    config = MinhashConfig(RUN, bands, rows, norm_config=plain)
    names = ("signatures", "buckets", "clusters", "left_out", "kept", "logs")
    at = {name: str(folder / name) for name in names}

    def reader() -> JsonlReader:
        return JsonlReader(str(path.parent), glob_pattern=path.name)

    writer = {"output_filename": "${rank}.jsonl", "compression": None}
    steps = (
        ([reader(), MinhashDedupSignature(at["signatures"], config, Plain())], 1),
        ([MinhashDedupBuckets(at["signatures"], at["buckets"], config=config)], bands),
        ([MinhashDedupCluster(at["buckets"], at["clusters"], config=config)], 1),
        (
            [
                reader(),
                MinhashDedupFilter(at["clusters"], JsonlWriter(at["left_out"], **writer)),
                JsonlWriter(at["kept"], **writer),
            ],
            1,
        ),
    )
    for number, (pipeline, tasks) in enumerate(steps):
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=f"{at['logs']}/{number}").run()
    lines = (folder / "left_out" / "00000.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["id"] for line in lines]


SIDES: dict[str, Callable[[Path, Path, float, int, int], list[str]]] = {
    "ours": ours,
    "datatrove": datatrove,
    "datasketch": datasketch,
}


def main() -> None:
    """Run the side that is asked for. Its libraries are imported before the clock starts."""
    side, documents, folder, threshold, bands, rows = sys.argv[1:]
    warm = Path(folder) / "warm.jsonl"
    with Path(documents).open(encoding="utf-8") as file:
        warm.write_text(file.readline(), encoding="utf-8")
    for name in ("warm", "run"):
        (Path(folder) / name).mkdir()
    arguments = (float(threshold), int(bands), int(rows))
    if side != "datatrove":  # its executor ends with an error where a single document has no duplicate
        SIDES[side](warm, Path(folder) / "warm", *arguments)
    begun = time.perf_counter()
    dropped = SIDES[side](Path(documents), Path(folder) / "run", *arguments)
    seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    used = {"ours": ("potstill", "numpy"), "datatrove": ("datatrove", "numpy"), "datasketch": ("datasketch", "numpy")}
    versions = {name: version(name) for name in used[side]}
    sys.stdout.write(
        json.dumps({"seconds": seconds, "peak_bytes": peak, "dropped": dropped, "versions": versions}) + "\n"
    )


if __name__ == "__main__":
    main()
