"""From a folder of images to a generator to a trained network.

python examples/own_images.py                                 # on small digits that come with dimdata
python examples/own_images.py photos --size 32 --minutes 30   # photos/train/cat/*.jpg, photos/train/dog/*.jpg, ...
"""

import argparse
import tempfile
from pathlib import Path

from torchvision.transforms.functional import to_pil_image

from dimdata import distill, load, train
from dimdata.cells import with_epochs
from dimdata.engine import keep_freed_memory
from dimdata.errors import DimdataError, RunError
from dimdata.real import RealData, Split, load_real, validation_split
from dimdata.students.train import accuracy, save_student


def write_digits(folder: Path) -> Path:
    """Write the digits as a folder of PNG files: folder/train/7/0000.png."""
    digits = load_real("digits")
    for part, split in (("train", digits.train), ("test", digits.test)):
        assert isinstance(split, Split)
        for number, (image, label) in enumerate(zip(split.images, split.labels.tolist(), strict=True)):
            path = folder / part / digits.classes[label] / f"{number:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            to_pil_image(image).save(path)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder", nargs="?", type=Path, help="one subfolder for each class, or train/ and test/ of these"
    )
    parser.add_argument("--size", type=int, help="side that the images of the folder are resized to, such as 32")
    parser.add_argument("--minutes", type=float, default=1.0, help="time to distil")
    parser.add_argument("--epochs", type=int, default=100, help="epochs of the student, at 10 images per class")
    parser.add_argument("--out", type=Path, default=Path("runs/own-images"))
    options = parser.parse_args()
    keep_freed_memory()  # eager training on CPUs is faster so

    with tempfile.TemporaryDirectory() as scratch:
        real: RealData = load_real(options.folder or write_digits(Path(scratch)), size=options.size)
    if real.test is None:
        real = validation_split(real)  # a tenth of the images is set aside to test on
    print(f"{len(real.train):,} images {real.image_shape} of {real.num_classes} classes")

    folder = distill(real, out=options.out, minutes=options.minutes, progress=show)
    generator = load(folder)
    print(f"The generator is in {folder}: {generator.nbytes / 1e6:.2f} MB")

    result = train("convnet3", generator, ipc=10, recipe=with_epochs(generator.recipe, options.epochs))
    print(f"A ConvNet-3 saw {result.images_drawn:,} generated images in {result.seconds:.0f} s.")
    save_student(result.network, options.out / "student.safetensors", result.info)
    assert real.test is not None
    right = accuracy(result.network, real.test.images, real.test.labels, real.mean, real.std)
    print(f"It is right on {right:.1%} of {len(real.test):,} real test images.")


def show(event: dict) -> None:
    if "steps" in event:
        left = f", {event['eta_seconds']:.0f} s left" if "eta_seconds" in event else ""  # not known from the start
        print(f"{event['phase']} {event['step']}/{event['steps']}{left}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except RunError as error:
        raise SystemExit(f"{error.message} Name another folder with --out, or remove this one.") from None
    except DimdataError as error:
        raise SystemExit(str(error)) from None
