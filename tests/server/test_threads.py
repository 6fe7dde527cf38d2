"""Work in threads: its results come on the loop, and work that can wait holds up nothing else."""

import asyncio
import threading

import pytest

from darner.server.threads import Threads

TIMEOUT_S = 10


def run(scenario):
    """Run a coroutine function with two threads for each lane."""

    async def main():
        threads = Threads(asyncio.get_running_loop(), 2)
        try:
            return await asyncio.wait_for(scenario(threads), TIMEOUT_S)
        finally:
            await threads.end()

    return asyncio.run(main())


def nothing():
    pass


def fail():
    raise OSError("no room")


class TestWork:
    @pytest.mark.parametrize("lane", ["offload", "defer"])
    def test_is_done_elsewhere_and_told_on_the_loop(self, lane):
        async def scenario(threads):
            told, done_in = asyncio.Future(), []
            getattr(threads, lane)(
                lambda: done_in.append(threading.get_ident()),
                lambda error: told.set_result((error, threading.get_ident())),
            )
            return *await told, *done_in

        error, told_in, done_in = run(scenario)
        assert (error, told_in) == (None, threading.get_ident())
        assert done_in != told_in

    def test_that_fails_is_told_so(self):
        async def scenario(threads):
            told = asyncio.Future()
            threads.offload(fail, told.set_result)
            return await told

        assert str(run(scenario)) == "no room"

    @pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
    def test_that_would_end_a_thread_is_told_so_and_does_not(self, error):
        def end():
            raise error

        async def scenario(threads):
            told = [asyncio.Future() for _ in range(5)]
            for each in told:
                threads.offload(end, each.set_result)
            return [str(await each) for each in told]

        assert run(scenario) == [f"{error.__name__}()"] * 5

    def test_that_can_wait_holds_up_none_that_cannot(self):
        async def scenario(threads):
            go_on, told = threading.Event(), asyncio.Future()
            for _ in range(5):
                threads.defer(lambda: go_on.wait(TIMEOUT_S), lambda _: None)
            threads.offload(nothing, told.set_result)
            try:
                await told
            finally:
                go_on.set()

        run(scenario)

    def test_whose_outcome_cannot_be_dealt_with_does_not_hold_up_the_end(self):
        async def scenario(threads):
            asyncio.get_running_loop().set_exception_handler(lambda *_: None)
            threads.offload(nothing, lambda _: fail())

        run(scenario)


class TestTheEnd:
    def test_waits_for_all_and_what_comes_of_it(self):
        seen = []

        async def scenario(threads):
            def again(_):
                seen.append("first")
                threads.defer(nothing, lambda _: seen.append("second"))

            threads.offload(nothing, again)

        run(scenario)
        assert seen == ["first", "second"]

    def test_leaves_no_thread(self):
        before = threading.active_count()

        async def scenario(threads):
            assert threading.active_count() == before + 4

        run(scenario)
        assert threading.active_count() == before

    def test_has_what_comes_later_done_at_once(self):
        async def scenario(threads):
            await threads.end()
            told = []
            threads.offload(nothing, told.append)
            threads.defer(fail, told.append)
            return told

        first, second = run(scenario)
        assert (first, str(second)) == (None, "no room")
