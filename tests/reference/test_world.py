"""The world: one seed, one video; and captions say what is true."""

from __future__ import annotations

import numpy as np
import pytest

from flowblend_compat_matrix.reference import text as text_module
from flowblend_compat_matrix.reference.world import (
    BACKGROUNDS,
    COLOURS,
    GRID,
    MIN_VISIBLE_FRACTION,
    NUM_FRAMES,
    PALETTES,
    SIZE,
    Attribute,
    caption,
    render,
    sample_scene,
    visible_fractions,
)


def scenes(num, seed=0):
    rng = np.random.default_rng(seed)
    return [sample_scene(rng) for _ in range(num)]


def test_one_seed_gives_one_scene_one_video_and_one_caption():
    first, second = scenes(3), scenes(3)
    assert first == second
    assert all(np.array_equal(render(a), render(b)) for a, b in zip(first, second, strict=True))
    captions = [caption(first[0], np.random.default_rng(5)) for _ in range(2)]
    assert captions[0] == captions[1]


def test_other_seeds_give_other_scenes():
    assert scenes(1, seed=1) != scenes(1, seed=2)


def test_videos_have_the_shape_type_and_range_that_is_promised():
    for scene in scenes(20):
        video = render(scene)
        assert video.shape == (NUM_FRAMES, SIZE, SIZE, 3)
        assert video.dtype == np.float32
        assert video.min() >= 0.0
        assert video.max() <= 1.0


def test_every_object_of_a_scene_can_be_seen_and_no_shape_comes_twice():
    for scene in scenes(50):
        assert 1 <= len(scene.objects) <= 2
        assert min(visible_fractions(scene)) >= MIN_VISIBLE_FRACTION
        assert len({item.shape for item in scene.objects}) == len(scene.objects)


def test_an_object_is_drawn_in_its_colour_where_it_stands():
    for scene in scenes(30):
        front = scene.objects[-1]
        if front.shape in ("ring", "cross") or front.texture != "plain":
            continue
        x, y = (int(coordinate) for coordinate in front.centre)
        middle = render(scene)[NUM_FRAMES // 2, y, x]
        np.testing.assert_allclose(middle, COLOURS[front.colour], atol=1e-5)


def test_moving_objects_move_the_way_they_are_said_to():
    for scene in scenes(40, seed=3):
        for item in scene.objects:
            assert (item.speed > 0) == (item.motion != "still")


def test_what_a_caption_leaves_to_chance_is_mostly_discrete():
    many = scenes(300)
    centres = {coordinate for scene in many for item in scene.objects for coordinate in item.centre}
    assert centres <= {float(GRID * cell) for cell in range(2, SIZE // GRID - 1)}
    assert len({scene.background.colours for scene in many}) == len(PALETTES)
    sharp = [scene.background for scene in many if scene.background.kind in ("stripes", "checkers")]
    assert {phase for background in sharp for phase in background.phase} == {0.0, 0.25, 0.5, 0.75}


def test_a_caption_names_only_what_is_there_and_its_attributes_are_its_words():
    rng = np.random.default_rng(1)
    for scene in scenes(200):
        said = caption(scene, rng)
        by_shape = {item.shape: item for item in scene.objects}
        words = said.text.split()
        for attribute in said.attributes:
            if attribute.subject == "background":
                assert attribute == Attribute("background", "kind", scene.background.kind)
                assert words[-1] == attribute.value
                continue
            item = by_shape[attribute.subject]
            assert attribute.subject in words
            if attribute.name != "present":
                assert attribute.value == getattr(item, attribute.name)
                assert attribute.value in words


def test_captions_leave_something_to_chance():
    rng = np.random.default_rng(1)
    num_said = [len(caption(scene, rng).attributes) for scene in scenes(200)]
    assert set(num_said) == {1, 2, 3, 4, 5}


def test_all_words_of_the_world_are_in_the_vocabulary():
    rng = np.random.default_rng(2)
    known = set(text_module.vocabulary())
    for scene in scenes(200):
        assert set(caption(scene, rng).text.split()) <= known
    assert set(BACKGROUNDS) <= known


@pytest.mark.parametrize("text", ["a red striped circle moving left over checkers", ""])
def test_the_tokenizer_ends_every_text_and_gives_the_words_back(text, tmp_path):
    tokenizer = text_module.make_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    for candidate in (tokenizer, again):
        ids = candidate(text).input_ids
        assert ids[-1] == candidate.eos_token_id
        assert len(ids) == len(text.split()) + 1
        assert candidate.decode(ids, skip_special_tokens=True) == text
        padded = candidate([text], padding="max_length", max_length=32, truncation=True)
        assert len(padded.input_ids[0]) == 32


def test_unknown_words_do_not_break_the_tokenizer():
    tokenizer = text_module.make_tokenizer()
    assert tokenizer("a turquoise circle").input_ids[1] == tokenizer.unk_token_id


def test_token_labels_say_of_each_word_what_its_own_phrase_says():
    said = caption(scenes(1)[0], np.random.default_rng(4))
    labels = text_module.token_labels(said)
    first = said.text.partition(" over ")[0].split(" and ")[0].split()
    shapes = list(text_module.FIELDS["shape"])
    shape = next(word for word in first if word in shapes)
    assert (labels[: len(first), 0] == shapes.index(shape) + 1).all()
    assert labels[-1, 0] == -100
