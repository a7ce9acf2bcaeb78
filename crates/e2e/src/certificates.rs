//! Certificates for tests of TLS: a private authority, and what it signs.

use std::time::Duration;

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use time::OffsetDateTime;

/// A private authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate and its key, both PEM.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Signed by the authority.
    pub certificate: String,
    /// PKCS #8.
    pub key: String,
}

/// When a certificate holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// At any time a test may run.
    Now,
    /// Until a day that is long over.
    Expired,
    /// Until the first day of this year: a server does not take one that has expired already.
    Until(i32),
    /// For so much longer: for a test that waits until it has expired.
    Briefly(Duration),
}

impl Authority {
    /// Makes up a key and signs itself.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        let mut params = parameters(name, &[])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().context("could not make a key")?;
        let certificate = params.self_signed(&key).context("could not sign")?;
        Ok(Self {
            pem: certificate.pem(),
            issuer: Issuer::new(params, key),
        })
    }

    /// Its own certificate, for those who are to trust it.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// For a server under these names or addresses.
    pub fn server(&self, names: &[&str], validity: Validity) -> anyhow::Result<Identity> {
        let mut params = parameters(names.first().unwrap_or(&"server"), names)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let until = match validity {
            Validity::Now => None,
            Validity::Expired => Some(date_time_ymd(2021, 1, 1)),
            Validity::Until(year) => Some(date_time_ymd(year, 1, 1)),
            Validity::Briefly(time) => Some(OffsetDateTime::now_utc() + time),
        };
        if let Some(until) = until {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = until;
        }
        self.sign(&params)
    }

    /// For a client that is known as `name`.
    pub fn client(&self, name: &str) -> anyhow::Result<Identity> {
        let mut params = parameters(name, &[])?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(&params)
    }

    fn sign(&self, params: &CertificateParams) -> anyhow::Result<Identity> {
        let key = KeyPair::generate().context("could not make a key")?;
        let certificate = params
            .signed_by(&key, &self.issuer)
            .context("could not sign")?;
        Ok(Identity {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }
}

fn parameters(name: &str, names: &[&str]) -> anyhow::Result<CertificateParams> {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names).context("these can't be names")?;
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}
