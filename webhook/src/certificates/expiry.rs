//! Until when a certificate is valid, out of its DER (RFC 5280 §4.1.2.5). Nothing else of it is of interest here, and a
//! certificate that rustls would refuse may well be read.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
/// `version`, which may be left out.
const VERSION: u8 = 0xa0;

/// The end of a certificate's validity; `None` when it cannot be read.
pub fn of(certificate: &[u8]) -> Option<Timestamp> {
    let mut certificate = Reader(Reader(certificate).take(SEQUENCE)?);
    let mut fields = Reader(certificate.take(SEQUENCE)?);
    if fields.0.first() == Some(&VERSION) {
        fields.take(VERSION)?;
    }
    fields.take(INTEGER)?; // serialNumber
    fields.take(SEQUENCE)?; // signature
    fields.take(SEQUENCE)?; // issuer
    let mut validity = Reader(fields.take(SEQUENCE)?);
    validity.time()?;
    validity.time()
}

/// Reads one value after the other.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        let (found, content) = self.next()?;
        (found == tag).then_some(content)
    }

    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&[tag, short], rest) = self.0.split_first_chunk()?;
        let (length, rest) = match short {
            0..=0x7f => (usize::from(short), rest),
            // 0x80 is a length that is not given, which DER has not. Then the long form: so many bytes of length. Four are more than any certificate has.
            0x81..=0x84 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(short & 0x7f))?;
                (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }

    fn time(&mut self) -> Option<Timestamp> {
        let (tag, content) = self.next()?;
        let text = std::str::from_utf8(content).ok()?;
        let text = match tag {
            // Two digits of the year are of 1950 to 2049.
            UTC_TIME if text.get(..2)? < "50" => format!("20{text}"),
            UTC_TIME => format!("19{text}"),
            GENERALIZED_TIME => text.to_owned(),
            _ => return None,
        };
        let time = DateTime::strptime("%Y%m%d%H%M%SZ", text).ok()?;
        time.to_zoned(TimeZone::UTC).ok().map(|time| time.timestamp())
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};
    use time::OffsetDateTime;

    use super::*;

    fn certificate(expires: i64) -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["a".to_owned()]).unwrap();
        params.not_before = OffsetDateTime::from_unix_timestamp(0).unwrap();
        params.not_after = OffsetDateTime::from_unix_timestamp(expires).unwrap();
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn the_end_is_read_in_both_forms_of_time() {
        // 1970, 2026 and 2049 are UTCTime, 2050 and 4096 are GeneralizedTime.
        for seconds in [1, 1_795_694_848, 2_524_607_999, 2_524_608_000, 67_090_982_400] {
            assert_eq!(of(&certificate(seconds)).unwrap().as_second(), seconds);
        }
    }

    #[test]
    fn what_is_no_certificate_has_no_end() {
        let whole = certificate(1_795_694_848);
        for length in 0..whole.len() {
            assert_eq!(of(&whole[..length]), None, "cut after {length} bytes");
        }
        for bytes in [&[0x30, 0x80][..], &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff], &[0x30, 0x02, 0x30, 0x00], b"text"] {
            assert_eq!(of(bytes), None, "{bytes:?}");
        }
    }
}
