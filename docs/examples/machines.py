"""Write a landing zone of machines, their sensors and their failures: python machines.py FOLDER

120 machines in 6 plants, 112 days from 2025-01-01. A machine that wears out runs hot and shakes for
some two weeks before it fails; a plant that is badly kept, or runs three shifts, wears its machines
out more often; the stronger a machine, the longer its repair. The same files every time.
"""

import csv
import random
import sys
from datetime import date, datetime, timedelta
from pathlib import Path

FIRST, DAYS, MACHINES, PLANTS = date(2025, 1, 1), 112, 120, 6


def write_landing(landing: Path, machines: int = MACHINES, days: int = DAYS) -> date:
    """Write ``<landing>/<source>/ds=YYYY-MM-DD/<source>.csv`` for each day; the day after the last.

    ``machines`` lands with those that are new or have moved, ``plants`` on days on which one has
    changed its shifts, ``sensor_readings`` and ``failures`` every day, the latter on many days with
    a header only.
    """
    chance = random.Random(7)
    plant = {machine: chance.randrange(PLANTS) for machine in range(machines)}
    shifts = {each: chance.choice((1, 2, 3)) for each in range(PLANTS)}
    power = {machine: chance.choice((75, 110, 160)) for machine in range(machines)}
    # days until a machine begins to wear out, and until it then fails
    sound = {machine: chance.randrange(1, 120) for machine in range(machines)}
    worn = dict.fromkeys(range(machines), 0)
    reading = failure = 0
    for number in range(days):
        day = FIRST + timedelta(days=number)
        midnight = datetime.combine(day, datetime.min.time())
        moved = list(range(machines)) if number == 0 else [chance.randrange(machines)]
        if number and number % 10 == 0:
            plant[moved[0]] = chance.randrange(PLANTS)
        attributes = [
            (f"M{machine:03}", f"P{plant[machine]}", power[machine], f"{midnight}")
            for machine in moved
        ]
        changed = list(range(PLANTS)) if number == 0 else []
        if number and number % 30 == 0:
            changed = [number // 30 % PLANTS]
            shifts[changed[0]] = shifts[changed[0]] % 3 + 1
        of_plants = [(f"P{each}", shifts[each], f"{midnight}") for each in changed]
        readings, failures = [], []
        for machine in range(machines):
            heat = worn[machine] / 2 if worn[machine] else 0.0
            for hour in (6, 18):
                reading += 1
                readings.append(
                    (
                        f"R{reading:07}",
                        f"M{machine:03}",
                        f"{midnight + timedelta(hours=hour, minutes=machine % 60)}",
                        f"{chance.gauss(60 + heat, 5):.2f}",
                        f"{chance.gauss(2 + heat / 6, 0.8):.3f}",
                    )
                )
            if sound[machine] > 0:
                sound[machine] -= 1 + (shifts[plant[machine]] == 3)
                continue
            worn[machine] += 1
            if worn[machine] >= 6 and chance.random() < 0.12:
                failure += 1
                at = midnight + timedelta(minutes=chance.randrange(1, 1440))
                part = chance.choice(("bearing", "belt", "motor"))
                hours = f"{chance.gammavariate(4, power[machine] / 60):.1f}"
                failures.append(
                    (f"F{failure:05}", f"M{machine:03}", f"P{plant[machine]}", f"{at}", part, hours)
                )
                worn[machine] = 0
                sound[machine] = chance.randrange(20, 60 + 25 * plant[machine])
        for source, header, rows in (
            ("plants", ("plant_id", "shifts", "valid_from"), of_plants),
            ("machines", ("machine_id", "plant_id", "power_kw", "valid_from"), attributes),
            (
                "sensor_readings",
                ("reading_id", "machine_id", "read_at", "temperature", "vibration"),
                readings,
            ),
            (
                "failures",
                ("failure_id", "machine_id", "plant_id", "failed_at", "part", "repair_hours"),
                failures,
            ),
        ):
            if source == "plants" and not rows:
                continue
            folder = landing / source / f"ds={day}"
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / f"{source}.csv").open("w", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(header)
                writer.writerows(rows)
    return FIRST + timedelta(days=days)


if __name__ == "__main__":
    print(write_landing(Path(sys.argv[1])))
