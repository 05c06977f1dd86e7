"""The README: what it points to is there, what is there it names, and its figures are measured ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

from comfy_host.places import ROOT, graph_names

README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "tests" / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
REFERENCES = (ROOT / "docs" / "references.bib").read_text(encoding="utf-8")
PAPER = re.compile(r"(?:arXiv[: ]+|abs/|eprint *= *\{)(\d{4}\.\d{4,5})")


def pages() -> list[Path]:
    """Return every page of text that is shipped."""
    return [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("js/docs/*/*.md"),
    ]


def test_every_picture_and_link_of_a_page_leads_to_a_file():
    for page in pages():
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            base = page.parent.parent if page.is_relative_to(ROOT / "js") else page.parent
            if "://" not in target:
                assert (base / target).exists(), (page.name, target)


def test_every_node_and_workflow_is_in_the_tables():
    nodes = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8")).values()
    bold = {name.split(" (")[0] for name in re.findall(r"\*\*([^*]+)\*\*", README)}
    assert {node["display_name"].split(" (")[0] for node in nodes} - bold == set()
    assert [name for name in graph_names() if f"`{name}`" not in README] == []


def test_the_figures_of_the_cost_table_are_in_the_results():
    table = README.split("| technique | time |")[1].split("\n\n")[0]
    figures = re.findall(r"\d+\.\d+", table)
    assert len(figures) > 10
    assert set(figures) - set(re.findall(r"\d+\.\d+", RESULTS)) == set()


def test_every_paper_that_the_pack_names_has_its_reference():
    sources = [
        *pages(),
        *(file for part in ("nodes", "guidance", "attention") for file in (ROOT / part).rglob("*.py")),
    ]
    named = {number for file in sources for number in PAPER.findall(file.read_text(encoding="utf-8"))}
    assert len(named) > 25
    assert named - set(PAPER.findall(REFERENCES)) == set()


def test_keys_and_papers_of_the_references_are_there_once():
    keys, papers = re.findall(r"^@\w+\{(\w+),", REFERENCES, re.M), PAPER.findall(REFERENCES)
    assert len(keys) == len(set(keys)) == len(papers) == len(set(papers))
    assert f"all {len(papers)} papers" in README
    quoted = set(re.findall(r"^@\w+\{(\w+),", README, re.M))
    assert quoted and quoted <= set(keys)
