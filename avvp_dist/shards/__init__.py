"""A shard set on disk or at a URL: how it is described, verified, opened and read.

From the bytes up: `schema` is a clip, `tars` a shard, `manifest` and `indexing` describe a set,
`exclusion` lists clips that are not for training. `remote`, `cache`, `verification`, `mapping`,
`opening` and `layout` serve `shard_set.ShardSet`, which readers use. `worker` opens sets in the
tasks of a job, `inspection` reports their content and faults.

How shards are fetched, cached, opened and mapped may be changed here alone. The format of tars,
index and manifest is a contract: users have shard sets on disk.
"""
