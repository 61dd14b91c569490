"""``dictserve encode`` and ``dictserve decode``: arrays through a pipe."""

from typing import Annotated, Literal

import typer

from app.commands.connection import Url, connected
from app.commands.files import STDIO, Format, Input, Output, output_format, read_codes, read_input, write_output

DType = Annotated[Literal["float32", "float64"], typer.Option(help="What is computed in and answered in.")]
Reference = Annotated[str, typer.Argument(metavar="DICTIONARY", help="A name (its latest version), or name@version.")]


def encode(
    dictionary: Reference,
    file: Input,
    output: Output = STDIO,
    format: Format = None,
    sparse: Annotated[bool, typer.Option("--sparse", help="The non-zero codes alone, as compressed rows.")] = False,
    top_k: Annotated[int | None, typer.Option(help="The largest codes of each row alone; sparse.")] = None,
    clip: Annotated[bool, typer.Option("--clip", help="Make negative values zero.")] = False,
    reconstruct: Annotated[bool, typer.Option("--reconstruct", help="Add each row's relative error.")] = False,
    dtype: DType = "float32",
    url: Url = None,
) -> None:
    """Activations to codes. Several arrays (--sparse, --top-k, --reconstruct) need json or safetensors."""
    from app.client import calls

    body, given = read_input(file)
    several = sparse or top_k is not None or reconstruct
    otherwise = "safetensors" if several and given != "json" else given
    wanted = output_format(output, format, otherwise)
    if several and wanted not in ("json", "safetensors"):
        raise typer.BadParameter(
            f"{wanted} holds one array: use json or safetensors", param_hint="--format or --output"
        )
    parameters: dict[str, calls.Parameter] = {
        "dictionary": dictionary,
        "sparse": sparse or None,
        "top_k": top_k,
        "clip": clip or None,
        "reconstruct": reconstruct or None,
        "dtype": dtype,
    }
    with connected(url) as client:
        write_output(output, client.send(calls.solve_as(wanted, "encode", body, parameters)))


def decode(
    dictionary: Reference,
    file: Input,
    output: Output = STDIO,
    format: Format = None,
    dtype: DType = "float32",
    url: Url = None,
) -> None:
    """Codes to activations. Compressed rows, as `encode --sparse` and `--top-k` write them, are codes too."""
    from app.client import calls

    body, given = read_codes(file)
    wanted = output_format(output, format, given)
    with connected(url) as client:
        write_output(
            output, client.send(calls.solve_as(wanted, "decode", body, {"dictionary": dictionary, "dtype": dtype}))
        )
