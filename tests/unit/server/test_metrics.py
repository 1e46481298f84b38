from __future__ import annotations

from pandaflow.server.metrics import BUCKETS, Metrics


def test_requests_are_counted_by_route_and_status() -> None:
    metrics = Metrics()
    metrics.served("GET", "/runs", 200, 0.0005)
    metrics.served("GET", "/runs", 200, 0.03)
    metrics.served("GET", "/runs", 404, 1_000.0)
    lines = metrics.text({"pool_ready": 7}, {"acquires_total": 12.0}).splitlines()
    assert 'pandaflow_requests_total{method="GET",route="/runs",status="200"} 2' in lines
    assert 'pandaflow_requests_total{method="GET",route="/runs",status="404"} 1' in lines
    assert 'pandaflow_request_seconds_bucket{route="/runs",le="0.001"} 1' in lines
    assert f'pandaflow_request_seconds_bucket{{route="/runs",le="{BUCKETS[-1]}"}} 2' in lines
    assert 'pandaflow_request_seconds_bucket{route="/runs",le="+Inf"} 3' in lines
    assert 'pandaflow_request_seconds_count{route="/runs"} 3' in lines
    assert "pandaflow_pool_ready 7" in lines and "pandaflow_acquires_total 12" in lines


def test_names_cannot_break_the_format() -> None:
    metrics = Metrics()
    metrics.served("GET", 'a"b\nc\\', 200, 0.1)
    assert 'route="a\\"b\\nc\\\\"' in metrics.text({}, {})
