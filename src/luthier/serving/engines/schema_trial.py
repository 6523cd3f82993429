"""A process that compiles one schema to find out whether that can be done: it has little time and memory, and may be ended.

    grammar ----> stdin
            <---- stdout: what is wrong with it; nothing for a good one

It needs no tokenizer, which hardly matters for what a grammar takes, and so starts in a fraction of a second.
"""

import resource
import sys

CPU_SECONDS, MEMORY_BYTES = 1, 128 * 2**20
"""What a trial may take. The largest schemas that people write take a third of it."""


def main() -> None:
    """Compile what stdin says, or die of it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    # not of the address space, into which some systems map files of hundreds of MB
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    from llguidance import LLMatcher

    sys.stdout.buffer.write(LLMatcher.validate_grammar(sys.stdin.buffer.read().decode()).encode())


if __name__ == "__main__":
    main()
