"""``python -m docs.make``: the reference and the picture of a factorisation. Tables are made by what measures."""

from docs.make import factorisation, reference


def main() -> None:
    reference.PAGE.write_text(reference.page())
    factorisation.PICTURE.write_text(factorisation.picture())


if __name__ == "__main__":
    main()
