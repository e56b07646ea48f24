//! gRPC over turmoil's TCP.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, Ipv4Addr},
    pin::Pin,
    task::{Context, Poll},
};

use hyper_util::rt::TokioIo;
use lockstep_rpc::{Carrier, ChannelOptions, ClientTrace};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::{
    body::Body,
    codegen::http,
    server::NamedService,
    transport::{Endpoint, Server, Uri, server::Connected},
};
use tower::{Service, service_fn};
use turmoil::net::{TcpListener, TcpStream};

/// A lazily connected channel, with the settings of production's.
pub(super) fn channel(address: &str, options: &ChannelOptions) -> Carrier {
    let connector = service_fn(|uri: Uri| async move {
        let host = uri.host().unwrap_or_default().to_owned();
        let stream = TcpStream::connect((host, uri.port_u16().unwrap_or_default())).await?;
        Ok::<_, io::Error>(TokioIo::new(stream))
    });
    let mut endpoint = Endpoint::from_shared(address.to_owned())
        .unwrap()
        .connect_timeout(options.connect_timeout)
        .http2_keep_alive_interval(options.keepalive_interval)
        .keep_alive_timeout(options.keepalive_timeout);
    if let Some(timeout) = options.request_timeout {
        endpoint = endpoint.timeout(timeout);
    }
    Carrier::new(ClientTrace::new(endpoint.connect_with_connector_lazy(connector), address))
}

/// Serves until the host crashes.
pub(super) async fn serve<S>(port: u16, service: S) -> turmoil::Result
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
        + NamedService
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send + 'static,
{
    let listener = TcpListener::bind((IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)).await?;
    let incoming = futures::stream::unfold(listener, |listener| async move {
        let accepted = listener.accept().await.map(|(stream, _)| Accepted(stream));
        Some((accepted, listener))
    });
    Server::builder().add_service(service).serve_with_incoming(incoming).await?;
    Ok(())
}

struct Accepted(TcpStream);

impl Connected for Accepted {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
