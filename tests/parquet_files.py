"""Parquet files with the columns of the benchmarks on the Hub, with pictures of a few pixels."""

import io

import pyarrow as pa
from PIL import Image
from pyarrow import parquet


def png(color="red"):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), color).save(buffer, "PNG")
    return buffer.getvalue()


def mmstar(number, **changed):
    kind = ("coarse perception", "image emotion") if number % 2 else ("math", "geometry")
    return {
        "index": number,
        "question": f" Which animal is number {number}?\nOptions: A: cat, B: dog, C: a hot dog, D: nan ",
        "image": {"bytes": png(), "path": f"images/{number}.jpg"},
        "answer": "ABCD"[number % 4],
        "category": kind[0],
        "l2_category": kind[1],
        "meta_info": {"source": "MMBench", "split": "val", "image_path": f"images/{number}.jpg"},
        **changed,
    }


def cvbench(number, **changed):
    task, source = [("Count", "ADE20K"), ("Relation", "COCO"), ("Depth", "Omni3D"), ("Distance", "Omni3D")][number % 4]
    return {
        "idx": number,
        "type": "3D" if source == "Omni3D" else "2D",
        "task": task,
        "image": {"bytes": png(), "path": None},
        "question": "Which is closer?",
        "choices": ["chair", "table", "bottle"],
        "answer": f"({'ABC'[number % 3]})",
        "prompt": "Which is closer? Select from the following choices.\n(A) chair\n(B) table\n(C) bottle",
        "filename": "img/1.png",
        "source": source,
        "source_dataset": source,
        "source_filename": "1.png",
        "target_class": None,
        "target_size": None,
        "bbox": None,
        **changed,
    }


def pope(number, **changed):
    return {
        "id": str(number),
        "question_id": str(number // 3),
        "question": "Is there a dog in the image?",
        "answer": ("yes", "no")[number % 2],
        "image_source": "COCO_val2014_000000016631",
        "image": {"bytes": png(("red", "blue")[number % 2]), "path": None},
        "category": ("random", "popular", "adversarial")[number % 3],
        **changed,
    }


def write(path, rows, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(list(rows)), path, **options)
    return path
