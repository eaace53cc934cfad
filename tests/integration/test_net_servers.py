"""Every server of a real coordinator and a real router: health and reflection are there, and roles guard them."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from potluck.errors import PotluckError
from potluck.net.channels import client_options, open_channel
from potluck.net.guard import rpc_errors
from potluck.net.tls import ROUTER_NAME
from potluck.v1 import admin_pb2, admin_pb2_grpc, node_pb2, node_pb2_grpc, router_pb2, router_pb2_grpc
from router.daemon import Options, RouterDaemon
from tests.integration.test_coord_daemon import DEADLINE_S, coordinator, in_loop

ALWAYS = {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


async def services(channel: grpc.aio.Channel) -> set[str]:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    with rpc_errors():
        answer = await stub.ServerReflectionInfo(iter([request]), timeout=DEADLINE_S).read()
    return {service.name for service in answer.list_services_response.service}


async def health_of(channel: grpc.aio.Channel) -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    with rpc_errors():
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S)
    return int(answer.status)


async def as_stranger(port: Any) -> grpc.aio.Channel:
    """Trusts whoever answers, and has no certificate to show."""
    pem = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port))
    credentials = grpc.ssl_channel_credentials(root_certificates=pem.encode())
    return grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=client_options())


async def error_of(call: Any) -> PotluckError:
    with pytest.raises(PotluckError) as caught, rpc_errors():
        await call
    return caught.value


@in_loop
async def test_the_enrolment_server_tells_strangers_its_health_and_its_services_and_nothing_else(
    tmp_path: Path,
) -> None:
    async with coordinator(tmp_path) as c, await as_stranger(c.ready["enrol"]) as channel:
        assert await health_of(channel) == health_pb2.HealthCheckResponse.SERVING
        assert await services(channel) == ALWAYS | {"potluck.v1.EnrolService"}
        admin: Any = admin_pb2_grpc.AdminServiceStub(channel)
        error = await error_of(admin.Invite(admin_pb2.InviteRequest(), timeout=DEADLINE_S))
        assert error.error_id == "refused.unknown-call"
        door: Any = node_pb2_grpc.EnrolServiceStub(channel)
        assert (await error_of(door.Enrol(node_pb2.EnrolRequest()))).error_id == "join.version"


@in_loop
async def test_the_control_server_says_health_and_services_to_every_role_and_to_no_stranger(tmp_path: Path) -> None:
    async with coordinator(tmp_path) as c:
        for role in ("node", "router", "client"):
            async with open_channel(await c.join(role, role)) as channel:
                assert await health_of(channel) == health_pb2.HealthCheckResponse.SERVING
                wanted = {f"potluck.v1.{name}Service" for name in ("Node", "Artifact", "Admin", "Mixture")}
                assert await services(channel) == ALWAYS | wanted
                admin: Any = admin_pb2_grpc.AdminServiceStub(channel)
                error = await error_of(admin.Invite(admin_pb2.InviteRequest(), timeout=DEADLINE_S))
                assert error.error_id == "join.wrong-role"
        # A stranger ends at the handshake: the server asks for a certificate of its own authority.
        credentials = grpc.ssl_channel_credentials(root_certificates=c.admin.ca_pem)
        target = f"127.0.0.1:{c.ready['control']}"
        async with grpc.aio.secure_channel(target, credentials, options=client_options()) as channel:
            assert (await error_of(health_of(channel))).error_id == "net.unreachable"


@in_loop
async def test_a_router_says_health_and_services_to_every_role_and_to_no_stranger(tmp_path: Path) -> None:
    async with coordinator(tmp_path / "c") as c:
        options = Options(home=tmp_path / "r", host="127.0.0.1", port=0, advertise="", http=False)
        router = RouterDaemon(await c.join("r", "router"), options)
        try:
            where = await router.start()
            reader = await c.join("reader", "client")
            async with open_channel(reader, target=where.address, server_name=ROUTER_NAME) as channel:
                assert await health_of(channel) == health_pb2.HealthCheckResponse.NOT_SERVING
                wanted = {"potluck.v1.RouterService", "potluck.v1.ExpertService"}
                assert await services(channel) == ALWAYS | wanted
            credentials = grpc.ssl_channel_credentials(root_certificates=c.admin.ca_pem)
            options_of = client_options(ROUTER_NAME)
            async with grpc.aio.secure_channel(where.address, credentials, options=options_of) as channel:
                stub: Any = router_pb2_grpc.RouterServiceStub(channel)
                error = await error_of(stub.Route(router_pb2.RouteRequest(text="a"), timeout=DEADLINE_S))
                assert error.error_id == "net.unreachable"
        finally:
            await router.stop()
