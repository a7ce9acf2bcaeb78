//! Whose failure a refused or failed connection is.

use lapin::ErrorKind;
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use rustls::{AlertDescription, CertificateError};

use crate::boot::ConfigError;

/// What an error while connecting means for the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BrokerFault {
    /// Trying again can't help: a setting or a right must be mended first.
    Misconfigured(ConfigError),
    /// The broker can't be reached or is starting or stopping, with its text: back off.
    Away(String),
}

/// What an error while connecting means.
#[must_use]
pub fn classify(err: &lapin::Error) -> BrokerFault {
    let amqp = match err.kind() {
        ErrorKind::ProtocolError(amqp) => amqp,
        ErrorKind::IOError(io) => match io.get_ref().and_then(|inner| inner.downcast_ref()) {
            Some(tls) => return classify_tls(tls),
            None => return BrokerFault::Away(err.to_string()),
        },
        _ => return BrokerFault::Away(err.to_string()),
    };
    let mend = match amqp.kind() {
        AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => "check user and password",
        AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => {
            "check the vhost behind the host (\"/\" is written %2F) and the user's rights in it"
        }
        _ => return BrokerFault::Away(err.to_string()),
    };
    BrokerFault::Misconfigured(ConfigError::new(
        "AMQP_URL",
        amqp.get_message().to_string(),
        mend,
    ))
}

/// An expired certificate is renewed on the broker's side alone; the rest needs a setting.
fn classify_tls(err: &rustls::Error) -> BrokerFault {
    let (field, mend) = match err {
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => (
            "AMQP_URL",
            "name the broker as its certificate does, or give it one for this name",
        ),
        rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => (
            "AMQP_CA_FILE",
            "set it to the certificate of the authority that signed the broker's",
        ),
        rustls::Error::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateExpired
            | AlertDescription::UnknownCA,
        ) => (
            "AMQP_CERT_FILE",
            "set it and AMQP_KEY_FILE to a certificate that the broker takes",
        ),
        rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => return BrokerFault::Away(format!("{err}: the broker needs a new one")),
        _ => return BrokerFault::Away(format!("TLS: {err}")),
    };
    BrokerFault::Misconfigured(ConfigError::new(field, format!("TLS: {err}"), mend))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expired_certificate_is_waited_for_and_other_refusals_name_the_setting() {
        let field = |err: rustls::Error| {
            let err = std::io::Error::new(std::io::ErrorKind::InvalidData, err);
            match classify(&err.into()) {
                BrokerFault::Misconfigured(config) => config.field,
                BrokerFault::Away(text) => text,
            }
        };
        let invalid = rustls::Error::InvalidCertificate;
        let alert = rustls::Error::AlertReceived;
        assert_eq!(
            field(invalid(CertificateError::NotValidForName)),
            "AMQP_URL"
        );
        assert_eq!(
            field(invalid(CertificateError::UnknownIssuer)),
            "AMQP_CA_FILE"
        );
        assert_eq!(
            field(alert(AlertDescription::CertificateRequired)),
            "AMQP_CERT_FILE"
        );
        assert!(field(invalid(CertificateError::Expired)).contains("needs a new one"));
        assert!(field(alert(AlertDescription::InternalError)).contains("TLS: "));
    }
}
