"""Heat, supply and clock, read from a made-up sysfs that stands in for boards which are not here."""

import pytest

from edgeqwen import power
from edgeqwen.power import Power, read_power


def board(root, *, throttled=None, celsius=(), clocks=(), alarm=None, counts=()):
    """Write the files that a kernel would have; `clocks` are (now, most) in MHz."""
    files = {f"class/thermal/thermal_zone{i}/temp": round(1000 * t) for i, t in enumerate(celsius)}
    for i, (now, most) in enumerate(clocks):
        files[f"devices/system/cpu/cpu{i}/cpufreq/scaling_cur_freq"] = now * 1000
        files[f"devices/system/cpu/cpu{i}/cpufreq/cpuinfo_max_freq"] = most * 1000
    for i, count in enumerate(counts):
        files[f"devices/system/cpu/cpu{i}/thermal_throttle/core_throttle_count"] = count
    if throttled is not None:
        files["devices/platform/soc/soc:firmware/get_throttled"] = f"{throttled:x}"
    if alarm is not None:
        files["class/hwmon/hwmon1/in0_lcrit_alarm"] = alarm
    for name, value in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{value}\n")
    return root


def test_a_board_at_rest(tmp_path):
    found = read_power(board(tmp_path, throttled=0, celsius=(48.312, 41), clocks=[(1500, 2400), (2400, 2400)]))
    assert found == Power(48.312, 1_500_000_000, 2_400_000_000)


@pytest.mark.parametrize(
    ("flags", "now", "past"),
    [
        (0x1, ("under-voltage",), ()),
        (0x50005, ("under-voltage", "throttled"), ("under-voltage", "throttled")),
        (0x20002, ("capped frequency",), ("capped frequency",)),
        (0x80008, ("soft temperature limit",), ("soft temperature limit",)),
        (0x50000, (), ("under-voltage", "throttled")),
    ],
)
def test_the_flags_of_a_raspberry_pi(tmp_path, flags, now, past):
    found = read_power(board(tmp_path, throttled=flags))
    assert (found.slowed, found.was_slowed) == (now, past)


def test_the_alarm_of_a_kernel_without_those_flags(tmp_path):
    assert read_power(board(tmp_path, alarm=1)).slowed == ("under-voltage",)
    assert read_power(board(tmp_path, alarm=0)).slowed == ()


def test_a_system_that_says_nothing(tmp_path):
    assert read_power(tmp_path) == Power()
    for name in ("class/thermal/thermal_zone0/temp", "devices/platform/soc/soc:firmware/get_throttled"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("no number")
    assert read_power(tmp_path) == Power()


def test_this_machine_can_be_read():
    found = read_power()
    assert found.temperature_c is None or 0 < found.temperature_c < 200
    assert found.frequency_hz is None or found.frequency_hz > 1e7


def test_vcgencmd_is_asked_where_there_is_no_file(tmp_path, monkeypatch):
    """A script stands in for the Raspberry Pi's own program."""
    program = tmp_path / "bin/vcgencmd"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\n[ "$1" = get_throttled ] && echo throttled=0x50005\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setattr(power, "SYSFS", tmp_path)
    assert read_power().slowed == ("under-voltage", "throttled")
    program.write_text("#!/bin/sh\necho VCHI initialization failed\n")
    assert read_power().slowed == ()


def test_what_happened_between_two_readings():
    calm = Power(slowings=3)
    assert calm.since(None) == calm.since(calm) == ()
    assert Power(slowed=("throttled",)).since(calm) == ("throttled",)
    assert Power(was_slowed=("under-voltage",)).since(calm) == ("under-voltage",), "it has happened meanwhile"
    assert Power(was_slowed=("under-voltage",)).since(Power(was_slowed=("under-voltage",))) == (), "it was before"
    assert Power(slowings=4).since(calm) == ("throttled",), "x86 counts"
