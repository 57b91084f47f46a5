"""``offbeat.yaml``: what may be written, what it means, and where each mistake stands."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from pipeline.config import Config, Ewma, Joint, Static, load, parse
from pipeline.errors import ConfigError

SMALLEST = """\
streams:
  pumps:
    topic: readings
    events:
      features: [x, y]
"""


def with_more(**sections: object) -> Config:
    """The smallest configuration with settings of its stream replaced or added; events are merged."""
    whole = yaml.safe_load(SMALLEST)
    pumps = whole["streams"]["pumps"]
    events = sections.pop("events", {})
    assert isinstance(events, dict)
    pumps["events"] |= events
    pumps |= sections
    return parse(yaml.safe_dump(whole, sort_keys=False))


def complaint(**sections: object) -> str:
    with pytest.raises(ConfigError) as error:
        with_more(**sections)
    return str(error.value).split(": ", 1)[1]


class TestDefaults:
    def test_the_smallest_configuration_is_a_topic_and_its_features(self) -> None:
        config = parse(SMALLEST)

        stream = config.stream("pumps")
        assert config.namespace == "offbeat"
        assert (stream.topic, stream.start, stream.feature_names) == ("readings", "earliest", ("x", "y"))
        assert (stream.events.kind, stream.events.series, stream.events.labels) == ("wide", ("series",), ())
        assert (stream.events.time.field, stream.events.time.format) == ("time", "s")
        assert (stream.events.ahead, stream.events.forget_after) == (60.0, 7 * 86_400.0)
        assert stream.threshold == Joint()
        assert (stream.alerts.for_rows, stream.alerts.refractory) == (1, 0.0)
        assert stream.model.window == 32

    @pytest.mark.parametrize(("features", "rows"), [(1, 32), (4, 32), (8, 16), (38, 4), (256, 4)])
    def test_windows_of_many_features_are_short_unless_their_length_is_given(
        self, features: int, rows: int
    ) -> None:
        names = [f"x{n}" for n in range(features)]

        assert with_more(events={"features": names}).stream("pumps").model.window == rows
        assert with_more(events={"features": names}, model={"code": 1}).stream("pumps").model.window == rows
        given = with_more(events={"features": names}, model={"window": 20})
        assert given.stream("pumps").model.window == 20

    def test_without_a_grid_nothing_is_late_by_design_and_no_gap_bounds_a_window(self) -> None:
        events = parse(SMALLEST).stream("pumps").events

        assert (events.late_s, events.gap_s) == (0.0, None)

    def test_a_cell_waits_one_cell_for_stragglers_and_five_cells_are_a_gap(self) -> None:
        events = with_more(events={"every": "10s"}).stream("pumps").events

        assert (events.late_s, events.gap_s) == (10.0, 50.0)

    def test_lateness_and_gap_are_taken_as_given(self) -> None:
        events = with_more(events={"every": "10s", "late": "0s", "gap": "1h"}).stream("pumps").events

        assert (events.late_s, events.gap_s) == (0.0, 3_600.0)

    def test_names_on_the_bus_carry_the_namespace(self) -> None:
        config = parse("namespace: plant\n" + SMALLEST)

        assert (config.alerts_topic, config.dead_letters_topic) == ("plant.alerts", "plant.dead-letters")
        assert (config.group("pumps"), config.transactional_id("pumps", 3)) == (
            "plant.pumps.detect",
            "plant.pumps.3",
        )

    def test_a_configuration_never_changes(self) -> None:
        config = parse(SMALLEST)

        with pytest.raises(ValidationError, match="frozen"):
            config.namespace = "other"


class TestWaysToWrite:
    @pytest.mark.parametrize(
        ("written", "seconds"),
        [
            ("250ms", 0.25),
            ("90s", 90),
            ("1.5h", 5_400),
            ("2 m", 120),
            (" 7d ", 604_800),
            (15, 15),
            (0.5, 0.5),
        ],
    )
    def test_a_duration_is_a_number_with_a_unit_or_seconds(self, written: object, seconds: float) -> None:
        assert with_more(events={"ahead": written}).stream("pumps").events.ahead == seconds

    def test_features_are_a_list_of_names_or_a_mapping_with_details(self) -> None:
        listed = with_more(events={"features": ["x"]}).stream("pumps").events
        mapped = with_more(events={"features": {"x": None}}).stream("pumps").events
        detailed = with_more(events={"features": {"x": {"path": "a.b", "transform": "rate", "unit": "B/s"}}})

        assert listed == mapped
        feature = detailed.stream("pumps").events.features["x"]
        assert (feature.path, feature.transform, feature.unit) == ("a.b", "rate", "B/s")

    def test_one_series_field_or_label_needs_no_list(self) -> None:
        events = with_more(events={"series": "id", "labels": "site"}).stream("pumps").events

        assert (events.series, events.labels) == (("id",), ("site",))

    def test_a_threshold_without_a_policy_is_the_joined_one_or_that_which_has_a_k(self) -> None:
        assert with_more(threshold={"line": 2}).stream("pumps").threshold == Joint(line=2)
        assert with_more(threshold={"k": 3}).stream("pumps").threshold == Ewma(k=3)

    def test_a_static_threshold_names_its_line(self) -> None:
        threshold = with_more(threshold={"policy": "static", "value": 2.5}).stream("pumps").threshold

        assert threshold == Static(policy="static", value=2.5)

    def test_alert_rules_say_for_as_people_do(self) -> None:
        assert with_more(alerts={"for": 3}).stream("pumps").alerts.for_rows == 3

    def test_two_wide_features_may_read_one_path(self) -> None:
        features = {"level": {"path": "v"}, "change": {"path": "v", "transform": "diff"}}

        assert with_more(events={"features": features}).stream("pumps").feature_names == ("level", "change")


class TestMistakes:
    @pytest.mark.parametrize(
        ("line", "said"),
        [
            (
                "      every: soon",
                (
                    "8: streams.pumps.events.every: 'soon' is no duration: "
                    "write a number and ms, s, m, h or d, such as 90s or 6h (found 'soon')"
                ),
            ),
            (
                "      evry: 10s",
                "8: streams.pumps.events.evry: no such setting; `offbeat config schema` lists them",
            ),
            ("nonsense: 1", "8: nonsense: no such setting; `offbeat config schema` lists them"),
            ("    threshold: {policy: static}", "8: streams.pumps.threshold.value: this setting is required"),
            (
                "    alerts: {for: 0}",
                "8: streams.pumps.alerts.for: Input should be greater than or equal to 1 (found 0)",
            ),
            (
                "    model: {hidden: [8, 0]}",
                "8: streams.pumps.model.hidden.1: Input should be greater than or equal to 1 (found 0)",
            ),
            (
                "      kind: narrow",
                "5: streams.pumps.events: narrow events need `every`: the grid joins metrics to rows",
            ),
            ("    topic: again", "8: topic: set twice"),
            ("  pumps: {topic: a, events: {features: [x]}}", "8: pumps: set twice"),
        ],
    )
    def test_each_is_told_with_its_line_and_path(self, line: str, said: str) -> None:
        text = f"""\
namespace: plant
streams:
  pumps:
    topic: readings
    events:
      series: device
      features: [x, y]
{line}
"""
        with pytest.raises(ConfigError) as error:
            parse(text)

        assert str(error.value).splitlines()[0] == f"offbeat.yaml:{said}"

    def test_all_are_told_at_once(self) -> None:
        with pytest.raises(ConfigError) as error:
            parse(SMALLEST + "      gap: -1\n      combine: median\n    start: middle\n")

        assert {line.split(": ")[1] for line in str(error.value).splitlines()} == {
            "streams.pumps.start",
            "streams.pumps.events.gap",
            "streams.pumps.events.combine",
        }

    def test_a_line_within_a_list_is_found(self) -> None:
        with pytest.raises(ConfigError, match=r"^mine.yaml:9: streams.pumps.events.labels.1: "):
            parse(SMALLEST + "      labels:\n\n        - site\n        - a..b\n", "mine.yaml")

    @pytest.mark.parametrize("name", ['a"b', "a\\b", "a\tb"])
    def test_a_field_that_json_cannot_name_as_it_is_is_refused(self, name: str) -> None:
        with pytest.raises(ConfigError, match="series"):
            with_more(events={"series": name})

    @pytest.mark.parametrize(
        ("events", "said"),
        [
            ({"every": "0.5ms"}, "`every` is at least 1ms"),
            ({"every": "1s", "late": "63s"}, "`late` spans more than 62 cells of `every`"),
            ({"late": "5s"}, "`late` needs `every`: without a grid, time must rise strictly within a series"),
            ({"gap": 0}, "`gap` is shorter than `every` or 1ms: no window would ever fill"),
            (
                {"every": "10s", "gap": "9s"},
                "`gap` is shorter than `every` or 1ms: no window would ever fill",
            ),
            ({"silent_after": "8d"}, "`silent_after` must be at least 1ms and below `forget_after`"),
            ({"silent_after": 0}, "`silent_after` must be at least 1ms and below `forget_after`"),
            (
                {"every": "1h", "forget_after": "2h"},
                "`forget_after` must be longer than `every` and `late` together",
            ),
            ({"time": {"field": "x"}}, "the path 'x' is read as a feature and as the time or the series"),
            ({"series": ["id", "y"]}, "the path 'y' is read as a feature and as the time or the series"),
            ({"series": "time"}, "the path 'time' is read as the time and as the series"),
            ({"labels": ["x.y"]}, "the path 'x' is read as a value, and 'x.y' reaches into it"),
            (
                {"kind": "narrow", "every": "1s", "features": {"a": {"path": "m"}, "m": {}}},
                "two features read the same metric",
            ),
            (
                {"kind": "narrow", "every": "1s", "metric": "v", "value": "v"},
                "the path 'v' is read as the metric's name and as its value",
            ),
        ],
    )
    def test_settings_that_do_not_go_together_are_refused(self, events: dict[str, object], said: str) -> None:
        assert complaint(events=events) == f"streams.pumps.events: {said}"

    @pytest.mark.parametrize(
        ("events", "said"),
        [
            ({"features": ["x", "x"]}, "features: a feature is named twice"),
            ({"features": "x"}, "features: Input should be a valid dictionary (found 'x')"),
            (
                {"silent_after": True},
                "silent_after: a duration is a number and ms, s, m, h or d, such as 90s",
            ),
            ({"forget_after": "99999d"}, "forget_after: Input should be less than or equal to 315360000"),
            ({"max_series": 0}, "max_series: Input should be greater than or equal to 1 (found 0)"),
        ],
    )
    def test_values_that_cannot_be_are_refused(self, events: dict[str, object], said: str) -> None:
        assert complaint(events=events).startswith(f"streams.pumps.events.{said}")

    @pytest.mark.parametrize("name", ["time", "site"])
    def test_a_records_own_timestamp_leaves_the_time_field_free(self, name: str) -> None:
        events = with_more(events={"time": {"format": "record"}, "series": name}).stream("pumps").events

        assert events.series == (name,)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("", "offbeat.yaml:1: expected settings such as `streams:`, found NoneType"),
            ("- a", "offbeat.yaml:1: expected settings such as `streams:`, found list"),
            (
                "a:\n  [",
                "offbeat.yaml:2: this is not YAML: expected the node content, but found '<stream end>'",
            ),
            ("a: \x00", "offbeat.yaml: this is not YAML: unacceptable character #x0000"),
            ("a: 2020-13-45", "offbeat.yaml: this is not YAML: month must be in 1..12"),
            (
                "!!python/object:os.system {}",
                "offbeat.yaml:1: this is not YAML: could not determine a constructor",
            ),
            ("streams: {}", "offbeat.yaml:1: streams: Dictionary should have at least 1 item"),
            ("streams: &all [*all]", "offbeat.yaml:1: streams: Input should be a valid dictionary"),
            ("{}", "offbeat.yaml:1: streams: this setting is required"),
        ],
    )
    def test_text_that_is_no_configuration_is_refused(self, text: str, said: str) -> None:
        with pytest.raises(ConfigError) as error:
            parse(text)

        assert str(error.value).startswith(said)

    def test_an_unknown_stream_is_told_with_those_there_are(self) -> None:
        with pytest.raises(ConfigError, match="there is no stream 'fans'; the configuration has: pumps"):
            parse(SMALLEST).stream("fans")


class TestFiles:
    def test_a_file_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "offbeat.yaml"
        path.write_text(SMALLEST, encoding="utf-8")

        assert load(path) == parse(SMALLEST)

    def test_a_missing_file_is_told_with_the_way_out(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="no such file; `offbeat config example"):
            load(tmp_path / "none.yaml")

    def test_a_file_that_is_no_text_is_told(self, tmp_path: Path) -> None:
        path = tmp_path / "offbeat.yaml"
        path.write_bytes(b"\xff\xfe\x00")

        with pytest.raises(ConfigError, match=r"cannot be read .* give a readable UTF-8 file"):
            load(path)

    def test_a_folder_is_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="cannot be read"):
            load(tmp_path)
