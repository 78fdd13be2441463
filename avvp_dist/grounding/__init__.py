"""Grounding: which snippets of a clip belong together (Algorithm 1), for a whole shard set.

`components` and `labels` turn features into component ids. `calibrate` chooses the similarity
thresholds from a sample, `job` labels every shard on Ray, `version` opens a finished grounding.
Files of a grounding keep their bytes: whoever changes what labels depend on must put it into
`Plan`, which names the version. Objectives see a grounding through `version.Grounding` alone.
"""
