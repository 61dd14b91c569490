"""What MkDocs is told beside mkdocs.yml: CHANGELOG.md lies outside docs/, and is a page all the same."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

CHANGELOG = Path(__file__).parents[2] / "CHANGELOG.md"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    files.append(File.generated(config, "changelog.md", content=CHANGELOG.read_text()))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    return markdown.replace("(../CHANGELOG.md)", "(changelog.md)")
