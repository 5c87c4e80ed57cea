"""Real data for the examples: the Wisconsin breast cancer set that scikit-learn ships, as SageMaker's CSV wants it.

python make_data.py FOLDER     writes FOLDER/train/ (three files) and FOLDER/validation/: no header, the label first
"""

import sys
from pathlib import Path

import numpy
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split


def main(folder: Path) -> None:
    features, labels = load_breast_cancer(return_X_y=True)
    parts = train_test_split(features, labels, test_size=0.25, random_state=0, stratify=labels)
    for name, x, y, file_count in (("train", parts[0], parts[2], 3), ("validation", parts[1], parts[3], 1)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        table = numpy.column_stack([y, x])
        for number, rows in enumerate(numpy.array_split(table, file_count)):
            numpy.savetxt(folder / name / f"part-{number}.csv", rows, delimiter=",", fmt="%.8g")
        print(f"{folder / name}: {len(y)} rows, {x.shape[1]} features, {y.mean():.0%} benign")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
