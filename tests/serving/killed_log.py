"""A process that logs until it is killed: `python tests/serving/killed_log.py URI FIRST_NUMBER`."""

import sys
from datetime import UTC, datetime

from luthier.serving.records.log import RequestLog
from luthier.serving.records.logged import LoggedRequest

TURNS = [{"role": "user", "content": "My order <EMAIL_aaaaaa> never came." * 5}]


def main() -> None:
    """Log one row after the other; say now and then up to which of them all are promised to be there."""
    number = int(sys.argv[2])
    log = RequestLog(sys.argv[1])
    log.start()
    while True:
        for _ in range(300):
            at = datetime.now(UTC)
            log.put(
                LoggedRequest(
                    request=f"r{number:08d}", at=at, asked="m", status=200, seconds=1.0, messages=TURNS, answer="x" * 500
                )
            )
            number += 1
        if not log.flush():
            sys.exit("not written within 10 s")
        print(number, flush=True)


if __name__ == "__main__":
    main()
