"""The pack as the host sees it: nodes, schemas, locale, help pages, and the self-check for missing host symbols."""

import asyncio
import inspect
import json
import logging

import pytest
import torch

from comfy_host.places import ROOT
from guided_synthesis import comfy_entrypoint
from guided_synthesis.guidance.views.registry import VIEWS
from real_host.sampling import sample


@pytest.fixture(scope="module")
def schemas(host):
    async def collect():
        extension = await comfy_entrypoint()
        return [(node, node.define_schema()) for node in await extension.get_node_list()]

    return asyncio.run(collect())


def test_every_node_file_of_the_pack_is_registered(schemas, host):
    from guided_synthesis.nodes import MODULES

    assert {node.__module__.rsplit(".", 1)[1] for node, _ in schemas} == set(MODULES)
    found = {path.stem for path in (ROOT / "nodes").glob("*.py")} - {"__init__"}
    assert found == set(MODULES)


def test_ids_tooltips_help_pages_and_descriptions_are_complete(schemas):
    for _, schema in schemas:
        assert schema.node_id.startswith("GuidedSynthesis_")
        assert schema.description and schema.display_name
        assert all(entry.tooltip for entry in [*schema.inputs, *schema.outputs]), schema.node_id
        page = (ROOT / "js" / "docs" / schema.node_id / "en.md").read_text(encoding="utf-8")
        assert [entry.id for entry in schema.inputs if f"**{entry.id}**" not in page] == []


def test_execute_takes_exactly_the_inputs_of_the_schema(schemas):
    from comfy_api.latest import io

    for node, schema in schemas:
        parameters = inspect.signature(node.execute).parameters.values()
        named = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD}
        rest = [entry for entry in schema.inputs if entry.id not in named]
        assert named <= {entry.id for entry in schema.inputs}, schema.node_id
        assert all(isinstance(entry, io.Boolean.Input) for entry in rest), (
            schema.node_id
        )  # switches of layers
        assert bool(rest) == (len(named) < len(parameters)), schema.node_id


def test_the_locale_file_says_what_the_schemas_say(host):
    import locale_file

    assert json.loads(locale_file.FILE.read_text(encoding="utf-8")) == locale_file.node_definitions()
    assert json.loads(locale_file.CATEGORIES.read_text(encoding="utf-8")) == locale_file.node_categories()


def test_the_help_page_of_view_describes_every_view():
    page = (ROOT / "js" / "docs" / "GuidedSynthesis_View" / "en.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    for name, kind in VIEWS.items():
        assert [row for row in rows if row.startswith(f"| {name} |") and row.endswith(f"| {kind.about} |")], (
            name
        )


def test_a_missing_host_symbol_switches_off_its_nodes_only_and_is_named(host, monkeypatch, caplog):
    from guided_synthesis.nodes import available_nodes
    from guided_synthesis.nodes.host import symbols

    needed = {
        **symbols.NEEDED,
        "painting_guide": ("comfy.sd.VAE", "comfy.sd.NoSuchThing", "comfy.no_module.f"),
    }
    monkeypatch.setattr(symbols, "NEEDED", needed)
    with caplog.at_level(logging.WARNING):
        assert available_nodes(("painting_guide",)) == []
    assert "comfy.sd.NoSuchThing, comfy.no_module.f" in caplog.text
    assert "painting_guide" in caplog.text and "update ComfyUI" in caplog.text
    monkeypatch.undo()
    assert len(available_nodes(("painting_guide",))) == 1


def test_keywords_that_an_older_host_lacks_are_dropped_but_typos_raise(host):
    from guided_synthesis.nodes.host.schema import tolerant

    def old_schema(node_id, category="sd"):
        return node_id, category

    assert tolerant(old_schema, node_id="x", search_aliases=["y"]) == ("x", "sd")
    with pytest.raises(TypeError):
        tolerant(old_schema, node_id="x", categry="typo")


def test_importing_the_pack_leaves_default_sampling_alone(host, tiny):
    """The host's functions that the pack relies on are still the host's own after our nodes were imported."""
    from guided_synthesis.nodes import available_nodes

    before = sample(host, tiny[0], tiny[1], steps=2)
    available_nodes()
    for module in (host.comfy.samplers, host.comfy.sample, host.comfy.model_patcher, host.comfy.sd):
        for name, value in vars(module).items():
            if inspect.isfunction(value) or inspect.isclass(value):
                assert not value.__module__.startswith("guided_synthesis"), name
    assert torch.equal(sample(host, tiny[0], tiny[1], steps=2), before)
