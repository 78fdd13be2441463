"""Work on a Ray cluster: joining or starting one, its hosts, and tasks on them.

How tasks are spread over hosts, and which GPUs they see, may change here alone. Only this room
imports Ray, when it is used.
"""
