"""The gateway: OpenAI's API before one or several versions of the model.

    request -> keys -> chat.parse_chat -> routing.RouteTable -> engine -> completion -> log.RequestLog, metrics.Metrics

A client's mistake is an `errors.ApiError`, which knows its status and its body; no other exception is meant to reach a client.
"""
