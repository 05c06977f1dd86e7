"""UI-format graphs become the prompts that the browser would send."""

from __future__ import annotations

from typing import Any

import pytest

from comfy_host.problems import Problem
from comfy_host.workflow import choices, to_prompt, upload_inputs, widget_values


def info(order: dict[str, list] | None = None, **required: Any) -> dict:
    return {"input": {"required": required, "optional": order or {}}}


OBJECT_INFO = {
    "Sampler": info(
        model=["MODEL"],
        seed=["INT", {"control_after_generate": True}],
        steps=["INT", {}],
        sampler=[["euler", "ddim"], {}],
        scheduler=["COMBO", {"options": ["normal", "karras"]}],
    ),
    "Load": info(image=[["a.png"], {"image_upload": True}], scale=["FLOAT", {}]),
    "Model": info(name=[["x.safetensors"]]),
    "Patch": info({"mask": ["MASK"]}, model=["MODEL"], strength=["FLOAT", {}]),
    "Latent": info(width=["INT", {}], height=["INT", {"forceInput": True}], batch=["INT", {}]),
    "Sizes": info(image=["IMAGE"]),
    "Words": info(words=["STRING", {"multiline": True}], parts=["COMBO", {"options": []}]),
}


def node(
    number: int, kind: str, values: Any = None, mode: int = 0, outputs: tuple = (), **inputs: Any
) -> dict:
    """A node in UI format; an input is (link, type), a widget that was turned into an input too."""
    sockets = [{"name": name, "link": link, "type": kind} for name, (link, kind) in inputs.items()]
    made = [{"name": kind, "type": kind, "links": []} for kind in outputs]
    return {
        "id": number,
        "type": kind,
        "mode": mode,
        "inputs": sockets,
        "outputs": made,
        "widgets_values": [] if values is None else values,
    }


def graph(*nodes: dict, links: list) -> dict:
    return {"nodes": list(nodes), "links": links}


def inputs_of(converted: dict, number: int) -> dict:
    return converted[str(number)]["inputs"]


def test_widget_values_go_to_inputs_in_order_and_the_control_after_a_seed_is_left_out():
    values = widget_values(
        node(1, "Sampler", [7, "randomize", 20, "euler", "karras"]), OBJECT_INFO["Sampler"]
    )
    assert values == {"seed": 7, "steps": 20, "sampler": "euler", "scheduler": "karras"}


def test_a_seed_saved_without_its_control_value_is_read_too():
    values = widget_values(node(1, "Sampler", [7, 20, "euler", "karras"]), OBJECT_INFO["Sampler"])
    assert values == {"seed": 7, "steps": 20, "sampler": "euler", "scheduler": "karras"}


def test_the_upload_button_of_a_picture_is_left_out():
    values = widget_values(node(1, "Load", ["a.png", "image", 0.5]), OBJECT_INFO["Load"])
    assert values == {"image": "a.png", "scale": 0.5}


def test_an_input_that_is_forced_to_be_a_socket_takes_no_widget_value():
    assert widget_values(node(1, "Latent", [64, 2]), OBJECT_INFO["Latent"]) == {"width": 64, "batch": 2}


def test_values_saved_by_name_are_taken_by_name():
    values = widget_values(node(1, "Load", {"image": "a.png", "videopreview": {}}), OBJECT_INFO["Load"])
    assert values == {"image": "a.png"}


def test_a_list_value_is_wrapped_so_that_it_is_not_taken_for_a_wire():
    values = widget_values(node(1, "Words", ["fox", ["1", 0]]), OBJECT_INFO["Words"])
    assert values == {"words": "fox", "parts": {"__value__": ["1", 0]}}


def test_wires_become_pairs_of_node_and_slot_in_both_link_forms():
    for link in ([5, 1, 0, 2, 0, "MODEL"], {"id": 5, "origin_id": 1, "origin_slot": 0, "type": "MODEL"}):
        made = to_prompt(
            graph(
                node(1, "Model", ["x.safetensors"], outputs=("MODEL",)),
                node(2, "Patch", [1.0], model=(5, "MODEL"), mask=(None, "MASK")),
                links=[link],
            ),
            OBJECT_INFO,
        )
        assert inputs_of(made, 2) == {"model": ["1", 0], "strength": 1.0}


def test_a_wire_wins_over_the_widget_value_it_replaces():
    made = to_prompt(
        graph(
            node(1, "Sizes", outputs=("INT", "INT")),
            node(2, "Latent", [512, 1], width=(9, "INT")),
            links=[[9, 1, 1, 2, 0, "INT"]],
        ),
        OBJECT_INFO,
    )
    assert inputs_of(made, 2) == {"width": ["1", 1], "batch": 1}


def test_a_bypassed_node_hands_its_input_of_the_same_type_on():
    made = to_prompt(
        graph(
            node(1, "Model", ["x.safetensors"], outputs=("MODEL",)),
            node(2, "Patch", [1.0], mode=4, outputs=("MODEL",), mask=(None, "MASK"), model=(5, "MODEL")),
            node(3, "Patch", [0.5], model=(6, "MODEL")),
            links=[[5, 1, 0, 2, 0, "MODEL"], [6, 2, 0, 3, 0, "MODEL"]],
        ),
        OBJECT_INFO,
    )
    assert set(made) == {"1", "3"}
    assert inputs_of(made, 3)["model"] == ["1", 0]


def test_a_bypassed_node_without_a_fitting_input_hands_on_nothing():
    made = to_prompt(
        graph(
            node(1, "Model", ["x.safetensors"], mode=4, outputs=("MODEL",)),
            node(2, "Patch", [0.5], model=(6, "MODEL")),
            links=[[6, 1, 0, 2, 0, "MODEL"]],
        ),
        OBJECT_INFO,
    )
    assert inputs_of(made, 2) == {"strength": 0.5}


def test_a_muted_node_disappears_with_its_wires():
    made = to_prompt(
        graph(
            node(1, "Model", ["x.safetensors"], mode=2, outputs=("MODEL",)),
            node(2, "Patch", [0.5], model=(6, "MODEL")),
            links=[[6, 1, 0, 2, 0, "MODEL"]],
        ),
        OBJECT_INFO,
    )
    assert made == {"2": {"class_type": "Patch", "inputs": {"strength": 0.5}, "_meta": {"title": "Patch"}}}


def test_wires_pass_through_reroutes():
    made = to_prompt(
        graph(
            node(1, "Model", ["x.safetensors"], outputs=("MODEL",)),
            {**node(2, "Reroute", outputs=("*",)), "inputs": [{"name": "", "type": "*", "link": 5}]},
            {**node(3, "Reroute", outputs=("*",)), "inputs": [{"name": "", "type": "*", "link": 6}]},
            node(4, "Patch", [0.5], model=(7, "MODEL")),
            links=[[5, 1, 0, 2, 0, "MODEL"], [6, 2, 0, 3, 0, "*"], [7, 3, 0, 4, 0, "*"]],
        ),
        OBJECT_INFO,
    )
    assert set(made) == {"1", "4"}
    assert inputs_of(made, 4)["model"] == ["1", 0]


def test_a_primitive_gives_its_value():
    made = to_prompt(
        graph(
            node(1, "PrimitiveNode", [640, "fixed"], outputs=("INT",)),
            node(2, "Latent", [512, 1], width=(9, "INT")),
            links=[[9, 1, 0, 2, 0, "INT"]],
        ),
        OBJECT_INFO,
    )
    assert made.keys() == {"2"}
    assert inputs_of(made, 2) == {"width": 640, "batch": 1}


def test_notes_are_no_part_of_the_prompt():
    assert (
        to_prompt(graph(node(1, "Note", ["a"]), node(2, "MarkdownNote", ["b"]), links=[]), OBJECT_INFO) == {}
    )


def test_a_node_the_host_lacks_is_named():
    with pytest.raises(Problem, match=r"no node Nonesuch \(node 3"):
        to_prompt(graph(node(3, "Nonesuch"), links=[]), OBJECT_INFO)


def test_combos_are_read_in_both_forms():
    assert choices(OBJECT_INFO["Sampler"], "sampler") == ["euler", "ddim"]
    assert choices(OBJECT_INFO["Sampler"], "scheduler") == ["normal", "karras"]


def test_pictures_to_upload_are_found():
    made = to_prompt(graph(node(1, "Load", ["a.png", "image", 1.0]), links=[]), OBJECT_INFO)
    assert [inputs[name] for inputs, name in upload_inputs(made, OBJECT_INFO)] == ["a.png"]
