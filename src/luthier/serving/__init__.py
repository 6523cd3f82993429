"""The gateway: OpenAI's API before one or several versions of the model.

    request -> keys -> api.chat -> routing.RouteTable -> engines -> api.completion -> records.log, metrics.Metrics

A client's mistake is an `api.errors.ApiError`, which knows its status and its body; no other exception is meant to reach one.
"""
