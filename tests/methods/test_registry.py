"""Published methods by name, with options as words."""

import pytest

import sinkgate as sg
from sinkgate.methods import VAF, VAR, AdaptVis, Registers, Remove, ScalingVis, SinkToTheFront
from sinkgate.methods.registry import PUBLISHED, published


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_name_alone_is_the_method_with_its_defaults(name):
    assert published(name) == PUBLISHED[name]()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("vaf image 1.3 layers 9-14", VAF(image=1.3, layers=tuple(range(9, 15)))),
        ("scalingvis weight 2 layers 3,6-7", ScalingVis(2.0, (3, 6, 7))),
        ("adaptvis unsure 0.8 threshold 0.4 layers 3+6", AdaptVis(0.8, threshold=0.4, layers=(3, 6))),
        ("var dimensions 1415,2533 tau 25 criterion norm", VAR(dimensions=(1415, 2533), tau=25.0, criterion="norm")),
        ("front keep_positions true", SinkToTheFront(keep_positions=True)),
        ("remove criterion massive", Remove("massive")),
        ("registers neurons 5.120+4.31", Registers(((5, 120), (4, 31)))),
    ],
)
def test_options_are_the_attributes_of_the_method(text, expected):
    assert published(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no method is called ''; there are: adaptvis"),
        ("vaf layers 5-2", "layers is '5-2'; expected whole numbers"),
        ("vaf image 1.3 image 1.5", "several values of image; expected one"),
        ("scalingvis weight 9", "weight is 9.0; expected a finite number from 0 to 4"),
        ("magic", "no method is called 'magic'; there are: adaptvis"),
        ("vaf weight 2", "has no option 'weight'; expected pairs of a name and a value, of image, system, layers"),
        ("vaf image", "has no value for 'image'"),
        ("vaf image loud", "image is 'loud'; expected a number"),
        ("vaf layers first", "layers is 'first'; expected whole numbers"),
        ("vaf layers 1-2-3", "layers is '1-2-3'; expected whole numbers"),
        ("vaf uses_l_sinks true", "no option 'uses_l_sinks'"),
        ("front keep_positions maybe", "keep_positions is 'maybe'; expected true or false"),
        ("var moved 2", "moved is 2"),
        ("registers neurons 5-120", "neurons is '5-120'; expected layer and unit of each neuron, such as 5.120"),
    ],
)
def test_what_is_no_method_or_option_gets_a_sentence(text, message):
    with pytest.raises(sg.SinkgateError, match=message):
        published(text)
