//! A scripted control plane: real ADS and CSR services over resources a test sets by hand.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use serde_json::Value;
use tokio::sync::{oneshot, watch};
use tonic::{Request, Status};
use weft_xds::ResourceType;
use weft_xds::ca::{
    CertificateServer, CertificateService, IstioCertificateRequest, IstioCertificateResponse,
};
use weft_xds::server::{AdsServer, AdsStream, Handler, Peer};
use weft_xds::session::{Limits, Resource, ServerSession, Set, Source, Want};

/// The token tests use to join: it is the SPIFFE id to be issued.
pub struct Control {
    pub address: SocketAddr,
    pub ca: Arc<Authority>,
    world: Arc<World>,
    stop: Option<oneshot::Sender<()>>,
    runtime: tokio::runtime::Runtime,
}

#[derive(Default)]
struct World {
    resources: Mutex<BTreeMap<(ResourceType, String), Resource>>,
    version: watch::Sender<u64>,
    answers: watch::Sender<Vec<Answer>>,
}

/// What a proxy answered to a response.
#[derive(Debug, Clone)]
pub struct Answer {
    pub ty: ResourceType,
    /// `None`: accepted.
    pub refused: Option<String>,
}

impl Control {
    /// Serves on any port, or on one used before.
    pub fn start(port: u16) -> Control {
        Control::with_ca(port, Arc::new(Authority::new("test root")))
    }

    pub fn with_ca(port: u16, ca: Arc<Authority>) -> Control {
        let world = Arc::new(World::default());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let listener = runtime
            .block_on(async { tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap() });
        let address = listener.local_addr().unwrap();
        let service = tonic::transport::Server::builder()
            .add_service(AdsServer::new(world.clone()))
            .add_service(CertificateServer::new(ca.clone()));
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        runtime.spawn(service.serve_with_incoming_shutdown(incoming, async {
            let _ = stopped.await;
        }));
        Control { address, ca, world, stop: Some(stop), runtime }
    }

    /// Adds or replaces a resource given as JSON in Envoy's form.
    pub fn set(&self, ty: ResourceType, json: Value) {
        self.set_all([(ty, json)]);
    }

    /// Several at once.
    pub fn set_all(&self, all: impl IntoIterator<Item = (ResourceType, Value)>) {
        let mut resources = self.world.resources.lock().unwrap();
        for (ty, json) in all {
            let resource = resource(ty, &json);
            resources.insert((ty, resource.name.to_string()), resource);
        }
        drop(resources);
        self.world.version.send_modify(|version| *version += 1);
    }

    /// Takes a resource away.
    pub fn remove(&self, ty: ResourceType, name: &str) {
        self.world.resources.lock().unwrap().remove(&(ty, name.to_owned()));
        self.world.version.send_modify(|version| *version += 1);
    }

    /// How many responses of a type were accepted.
    pub fn accepted(&self, ty: ResourceType) -> usize {
        let answers = self.world.answers.borrow();
        answers.iter().filter(|answer| answer.ty == ty && answer.refused.is_none()).count()
    }

    /// Waits for the first refusal of a type.
    pub async fn refusal(&self, ty: ResourceType) -> String {
        let mut answers = self.world.answers.subscribe();
        let find = |answers: &Vec<Answer>| {
            answers.iter().find(|a| a.ty == ty && a.refused.is_some()).cloned()
        };
        let answers = answers.wait_for(|answers| find(answers).is_some()).await.unwrap();
        find(&answers).unwrap().refused.unwrap()
    }

    /// Ends at once, connections and all.
    pub fn kill(mut self) {
        self.stop.take();
        self.runtime.shutdown_background();
    }
}

fn resource(ty: ResourceType, json: &Value) -> Resource {
    use weft_xds::json::message_from_json;
    use weft_xds::pb::envoy::config::{
        cluster::v3::Cluster, endpoint::v3::ClusterLoadAssignment, listener::v3::Listener,
        route::v3::RouteConfiguration,
    };
    use weft_xds::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
    match ty {
        ResourceType::Cluster => {
            let message: Cluster = message_from_json(json).unwrap();
            Resource::new(message.name.clone(), &message)
        }
        ResourceType::Endpoint => {
            let message: ClusterLoadAssignment = message_from_json(json).unwrap();
            Resource::new(message.cluster_name.clone(), &message)
        }
        ResourceType::Listener => {
            let message: Listener = message_from_json(json).unwrap();
            Resource::new(message.name.clone(), &message)
        }
        ResourceType::Route => {
            let message: RouteConfiguration = message_from_json(json).unwrap();
            Resource::new(message.name.clone(), &message)
        }
        ResourceType::Secret => {
            let message: Secret = message_from_json(json).unwrap();
            Resource::new(message.name.clone(), &message)
        }
        ResourceType::NameTable => unreachable!("it has no JSON form here"),
    }
}

impl Source for &World {
    fn resources(&mut self, ty: ResourceType, want: Want<'_>) -> Set {
        let resources = self.resources.lock().unwrap();
        let wanted = |name: &str| match want {
            Want::All => true,
            Want::Names(names) => names.contains(name),
        };
        resources
            .iter()
            .filter(|((of, name), _)| *of == ty && wanted(name))
            .map(|(_, resource)| resource.clone())
            .collect()
    }
}

impl Handler for World {
    fn admit(&self, _: &Peer) -> Result<(), Status> {
        Ok(())
    }

    async fn serve(self: Arc<Self>, mut stream: AdsStream) -> Result<(), Status> {
        let mut session = ServerSession::new(stream.mode, Limits::default());
        let mut version = self.version.subscribe();
        loop {
            tokio::select! {
                request = stream.inbox.next() => {
                    let Some(request) = request? else { return Ok(()) };
                    let action = session.on_request(&request).unwrap();
                    if let Some(action) = action {
                        let refused = action.nacked.is_some().then(|| {
                            request.error().map(|error| error.message.clone()).unwrap_or_default()
                        });
                        if refused.is_some() || action.acked.is_some() {
                            let answer = Answer { ty: action.ty, refused };
                            self.answers.send_modify(|answers| answers.push(answer));
                        }
                    }
                }
                changed = version.changed() => {
                    if changed.is_err() { return Ok(()); }
                    ResourceType::PUSH_ORDER.into_iter().for_each(|ty| session.mark(ty));
                }
            }
            let mut source = &*self;
            while let Some(response) =
                session.poll(&mut source).or_else(|| session.poll_removals(&mut source))
            {
                let Some(permit) = stream.outbox.ready().await else { return Ok(()) };
                permit.send(response);
            }
        }
    }
}

/// Issues whatever SPIFFE id the token names.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    validity: i64,
}

impl Authority {
    pub fn new(name: &str) -> Authority {
        Authority::with_validity(name, 3600)
    }

    /// Issues certificates valid for some seconds from one second ago.
    pub fn with_validity(name: &str, validity: i64) -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        Authority { issuer: CertifiedIssuer::self_signed(params, key).unwrap(), validity }
    }

    pub fn root_pem(&self) -> String {
        self.issuer.pem()
    }

    /// Certificate chain and key for some names; `spiffe://…` becomes a URI.
    pub fn issue(&self, names: &[&str]) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = names.iter().map(|name| san(name)).collect();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// A list that takes these certificates back.
    pub fn revoke(&self, chains: &[&str]) -> String {
        let revoked = chains.iter().map(|chain| {
            let (_, pem) = x509_parser::pem::parse_x509_pem(chain.as_bytes()).unwrap();
            let serial = pem.parse_x509().unwrap().raw_serial().to_vec();
            rcgen::RevokedCertParams {
                serial_number: serial.into(),
                revocation_time: rcgen::date_time_ymd(2024, 1, 1),
                reason_code: None,
                invalidity_date: None,
            }
        });
        let list = rcgen::CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2024, 1, 1),
            next_update: rcgen::date_time_ymd(2100, 1, 1),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

fn san(name: &str) -> SanType {
    match name.contains("://") {
        true => SanType::URI(name.try_into().unwrap()),
        false => SanType::DnsName(name.try_into().unwrap()),
    }
}

impl CertificateService for Authority {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<IstioCertificateResponse, Status> {
        let id = weft_xds::connect::token(&request).unwrap_or_default().to_owned();
        let mut csr = rcgen::CertificateSigningRequestParams::from_pem(&request.get_ref().csr)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        csr.params = CertificateParams::default();
        csr.params.subject_alt_names = vec![san(&id)];
        let now = std::time::SystemTime::now();
        csr.params.not_before = (now - std::time::Duration::from_secs(1)).into();
        let validity = std::time::Duration::from_secs(self.validity.unsigned_abs());
        csr.params.not_after = (now + validity).into();
        let certificate = csr.signed_by(&self.issuer).unwrap();
        Ok(IstioCertificateResponse { cert_chain: vec![certificate.pem(), self.root_pem()] })
    }
}
