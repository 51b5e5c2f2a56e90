"""The Python SDK's client-side pools, synchronous and asynchronous."""

import asyncio
import time
from datetime import timedelta

import suite
from opensandbox import (
    AcquirePolicy,
    InMemoryAsyncPoolStateStore,
    InMemoryPoolStateStore,
    PoolCreationSpec,
    PoolDestroyState,
    SandboxManagerSync,
    SandboxPool,
    SandboxPoolAsync,
    SandboxPoolManager,
    SandboxPoolManagerAsync,
)
from opensandbox.config import ConnectionConfig, ConnectionConfigSync
from opensandbox.exceptions import PoolDestroyedException, PoolEmptyException, PoolNotRunningException
from opensandbox.models.sandboxes import SandboxFilter

s = suite.Suite()
spec = PoolCreationSpec(image=suite.IMAGE, metadata=suite.METADATA, env={"POOLED": "yes"})


def running():
    manager = SandboxManagerSync.create(connection_config=ConnectionConfigSync())
    try:
        return len(manager.list_sandbox_infos(SandboxFilter(metadata=suite.METADATA, page_size=100)).sandbox_infos)
    finally:
        manager.close()


def until(holds, what):
    end = time.monotonic() + 20
    while not holds():
        if time.monotonic() > end:
            raise suite.Failure(f"it did not happen: {what}")
        time.sleep(0.05)


@s.check("synchronous: warm up, acquire, prepare, resize, release, destroy")
def _():
    store = InMemoryPoolStateStore()
    pool = SandboxPool(
        pool_name="p",
        max_idle=2,
        state_store=store,
        connection_config=ConnectionConfigSync(),
        creation_spec=spec,
        warmup_sandbox_preparer=lambda made: made.files.write_file("/tmp/prepared", "ready"),
    )
    pool.start()
    try:
        until(lambda: pool.snapshot().idle_count == 2, "two idle sandboxes")
        taken = pool.acquire(timedelta(minutes=5), AcquirePolicy.FAIL_FAST)
        suite.equal(taken.commands.run('cat /tmp/prepared; echo " $POOLED"').text, "ready yes", "prepared")
        left = taken.get_info().expires_at.timestamp() - time.time()
        suite.true(0 < left <= 300, f"renewed from a day to 5 minutes, {left} s are left")
        until(lambda: pool.snapshot().idle_count == 2, "the pool is full again")
        taken.kill()
        taken.close()
        pool.resize(1)
        until(lambda: pool.snapshot().idle_count <= 1, "fewer idle sandboxes")
        suite.equal(pool.snapshot().failure_count, 0, f"failures: {pool.snapshot()}")
        pool.release_all_idle()
    finally:
        pool.shutdown()
    with suite.raises(PoolNotRunningException, "acquire"):
        pool.acquire()
    manager = SandboxPoolManager(state_store=store, connection_config=ConnectionConfigSync())
    suite.equal(manager.destroy("p").state, PoolDestroyState.DESTROYED, "state")
    until(lambda: running() == 0, "no sandbox is left")


@s.check("synchronous: an empty pool makes one, or says that it is empty")
def _():
    pool = SandboxPool(
        pool_name="empty", max_idle=0, state_store=InMemoryPoolStateStore(), connection_config=ConnectionConfigSync(), creation_spec=spec
    )
    pool.start()
    try:
        with suite.raises(PoolEmptyException, "acquire"):
            pool.acquire(policy=AcquirePolicy.FAIL_FAST)
        made = pool.acquire(timedelta(minutes=2), AcquirePolicy.DIRECT_CREATE)
        suite.equal(made.commands.run("echo direct").text, "direct", "output")
        made.kill()
        made.close()
    finally:
        pool.shutdown()


@s.check("asynchronous: many at once, one that was killed is not handed out, destroy")
async def _():
    store = InMemoryAsyncPoolStateStore()
    pool = SandboxPoolAsync(
        pool_name="a", max_idle=4, state_store=store, connection_config=ConnectionConfig(), creation_spec=spec, acquire_ready_timeout=timedelta(seconds=3)
    )
    async with pool:
        for _ in range(400):
            if (await pool.snapshot()).idle_count == 4:
                break
            await asyncio.sleep(0.05)
        killed = (await pool.snapshot_idle_entries())[0].sandbox_id
        manager = SandboxManagerSync.create(connection_config=ConnectionConfigSync())
        manager.kill_sandbox(killed)
        manager.close()
        taken = await asyncio.gather(*(pool.acquire(timedelta(minutes=2), AcquirePolicy.RETRY_NEXT_IDLE_THEN_CREATE) for _ in range(6)))
        suite.equal(len({t.id for t in taken}), 6, "different sandboxes")
        suite.true(killed not in [t.id for t in taken], "the killed one was handed out")
        results = await asyncio.gather(*(t.commands.run("echo $POOLED") for t in taken))
        suite.equal([r.text for r in results], ["yes"] * 6, "output")
        await asyncio.gather(*(t.destroy() for t in taken))
        result = await SandboxPoolManagerAsync(state_store=store, connection_config=ConnectionConfig()).destroy("a")
        suite.equal(result.state, PoolDestroyState.DESTROYED, "state")
        with suite.raises((PoolDestroyedException, PoolNotRunningException), "acquire"):
            await pool.acquire()
    for _ in range(200):
        if running() == 0:
            return
        await asyncio.sleep(0.05)
    raise suite.Failure(f"{running()} sandboxes are left")


s.run_sync()
