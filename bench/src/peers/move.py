"""Moves a folder to or from a prefix with obstore: push|pull ENDPOINT BUCKET PREFIX FOLDER, 16 files at a time."""

import asyncio
import os
import sys
from pathlib import Path

import obstore
from obstore.store import S3Store

direction, endpoint, bucket, prefix, folder = sys.argv[1:]
store = S3Store(
    bucket,
    endpoint=endpoint,
    region=os.environ["AWS_REGION"],
    access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
    secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
    virtual_hosted_style_request=False,
    client_options={"allow_http": True},
)
root = Path(folder)


async def push(path, slots):
    async with slots:
        await obstore.put_async(store, f"{prefix}/{path.relative_to(root)}", path)


async def pull(key, slots):
    async with slots:
        place = root / key[len(prefix) + 1 :]
        place.parent.mkdir(parents=True, exist_ok=True)
        answer = await obstore.get_async(store, key)
        with open(place, "wb", buffering=0) as file:
            async for chunk in answer.stream(min_chunk_size=4 << 20):
                file.write(chunk)


async def main():
    slots = asyncio.Semaphore(16)
    if direction == "push":
        await asyncio.gather(*(push(path, slots) for path in root.rglob("*") if path.is_file()))
    else:
        keys = [entry["path"] for page in obstore.list(store, prefix) for entry in page]
        await asyncio.gather(*(pull(key, slots) for key in keys))


asyncio.run(main())
# Threads of obstore's runtime may abort the interpreter while it is taken down (exit status 134, now and then).
os._exit(0)
