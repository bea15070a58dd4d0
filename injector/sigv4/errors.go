package sigv4

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"net/http"
	"strings"
)

// Protocol is the form in which a service of AWS answers.
type Protocol string

// The protocols of AWS services.
const (
	S3XML    Protocol = "s3"
	RESTXML  Protocol = "rest-xml"
	QueryXML Protocol = "query"
	EC2XML   Protocol = "ec2"
	JSON10   Protocol = "json-1.0"
	JSON11   Protocol = "json-1.1"
	RESTJSON Protocol = "rest-json"
	CBOR     Protocol = "rpc-v2-cbor"
)

// ProtocolOf tells the protocol of a request to a service.
func ProtocolOf(r *http.Request, service string) Protocol {
	contentType := r.Header.Get("Content-Type")
	switch {
	case r.Header.Get("Smithy-Protocol") == "rpc-v2-cbor":
		return CBOR
	case singleEncoded(service):
		return S3XML
	case service == "ec2":
		return EC2XML
	case strings.HasPrefix(contentType, "application/x-amz-json-1.1"):
		return JSON11
	case strings.HasPrefix(contentType, "application/x-amz-json-1.0"), r.Header.Get("X-Amz-Target") != "":
		return JSON10
	case strings.HasPrefix(contentType, "application/x-www-form-urlencoded"), r.URL.Query().Has("Action"):
		return QueryXML
	case service == "route53", service == "cloudfront", service == "s3control":
		return RESTXML
	}
	return RESTJSON
}

// ErrorBody is an error in the form that a service's SDK reads, so that its
// user sees our reason. XML names its charset, which AWS's own does not: people
// print such answers as text, and many programs take text for Latin-1.
func ErrorBody(p Protocol, code, message, requestID string) (contentType string, body []byte) {
	switch p {
	case S3XML:
		return "application/xml; charset=utf-8", xmlBody(xmlS3{Code: code, Message: message, RequestID: requestID})
	case RESTXML, QueryXML:
		return "text/xml; charset=utf-8", xmlBody(xmlQuery{Type: "Sender", Code: code, Message: message, RequestID: requestID})
	case EC2XML:
		return "text/xml; charset=utf-8", xmlBody(xmlEC2{Code: code, Message: message, RequestID: requestID})
	case CBOR:
		b := append([]byte{0xa2}, cborText("__type")...) // a map of two pairs
		b = append(b, cborText(code)...)
		b = append(b, cborText("message")...)
		return "application/cbor", append(b, cborText(message)...)
	case JSON10:
		return "application/x-amz-json-1.0", jsonBody(code, message)
	case JSON11:
		return "application/x-amz-json-1.1", jsonBody(code, message)
	}
	return "application/json", jsonBody(code, message)
}

// ErrorHeader are the fields that go with [ErrorBody].
func ErrorHeader(p Protocol, code, requestID string) http.Header {
	h := http.Header{"X-Amzn-Requestid": {requestID}}
	switch p {
	case S3XML:
		h = http.Header{"X-Amz-Request-Id": {requestID}}
	case RESTJSON:
		h.Set("X-Amzn-Errortype", code)
	case CBOR:
		h.Set("Smithy-Protocol", "rpc-v2-cbor")
	}
	return h
}

type xmlS3 struct {
	XMLName   xml.Name `xml:"Error"`
	Code      string
	Message   string
	RequestID string `xml:"RequestId"`
}

type xmlQuery struct {
	XMLName   xml.Name `xml:"ErrorResponse"`
	Type      string   `xml:"Error>Type"`
	Code      string   `xml:"Error>Code"`
	Message   string   `xml:"Error>Message"`
	RequestID string   `xml:"RequestId"`
}

type xmlEC2 struct {
	XMLName   xml.Name `xml:"Response"`
	Code      string   `xml:"Errors>Error>Code"`
	Message   string   `xml:"Errors>Error>Message"`
	RequestID string
}

func xmlBody(v any) []byte {
	b, err := xml.Marshal(v)
	if err != nil {
		panic(err) // a struct of strings
	}
	return append([]byte(xml.Header), b...)
}

func jsonBody(code, message string) []byte {
	b, err := json.Marshal(struct {
		Type    string `json:"__type"`
		Code    string `json:"code"`
		Message string `json:"message"`
	}{code, code, message})
	if err != nil {
		panic(err) // a struct of strings
	}
	return b
}

// cborText is a text string (RFC 8949 section 3.1, major type 3).
func cborText(s string) []byte {
	s = strings.ToValidUTF8(s, "?")
	n := len(s)
	switch {
	case n < 24:
		return append([]byte{0x60 | byte(n)}, s...)
	case n < 1<<8:
		return append([]byte{0x78, byte(n)}, s...)
	case n < 1<<16:
		return append([]byte{0x79, byte(n >> 8), byte(n)}, s...)
	}
	return append([]byte{0x7a, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}, s...)
}

// signatureCodes are the errors whose bodies may repeat what was signed: the
// canonical request with the session token in it, the token alone, or the key.
func signatureCodes() []string {
	return []string{
		"SignatureDoesNotMatch", "InvalidSignatureException", "InvalidSignature", "IncompleteSignature", "IncompleteSignatureException",
		"AuthorizationHeaderMalformed", "AuthorizationQueryParametersError", "MissingAuthenticationToken", "MissingAuthenticationTokenException",
		"InvalidToken", "InvalidTokenException", "InvalidTokenId", "TokenRefreshRequired", "ExpiredToken", "ExpiredTokenException", "RequestExpired",
		"InvalidAccessKeyId", "InvalidClientTokenId", "UnrecognizedClientException", "RequestTimeTooSkewed",
		"XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "AccessTokenMalformed", "CanonicalRequest", "StringToSign",
	}
}

// IsSignatureError reports whether an answer says that our signature or session
// was refused, and with which code. Its body must not reach the agent: it may
// repeat the session token. It looks for the codes as words, in any protocol:
// where a body only mentions one, nothing but that error's text is lost. All of
// them have one of three statuses; what is not found, such as a key that is
// spelled like a code, has another. body is the beginning of the decoded body.
func IsSignatureError(status int, h http.Header, body []byte) (code string, ok bool) {
	switch status {
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden:
	default:
		return "", false
	}
	if strings.HasPrefix(h.Get("Content-Type"), "application/cbor") {
		return codeInCBOR(body)
	}
	kind := h.Get("X-Amzn-Errortype")
	for _, c := range signatureCodes() {
		if hasWord([]byte(kind), c) || hasWord(body, c) {
			return c, true
		}
	}
	// The JSON services put it into the message.
	if bytes.Contains(body, []byte("Canonical String for this request")) || bytes.Contains(body, []byte("security token included in the request")) {
		return "InvalidSignatureException", true
	}
	return "", false
}

// codeInCBOR is the longest code in body. What stands around a text in CBOR are
// lengths, which look like letters.
func codeInCBOR(body []byte) (code string, ok bool) {
	for _, c := range signatureCodes() {
		if len(c) > len(code) && bytes.Contains(body, []byte(c)) {
			code = c
		}
	}
	return code, code != ""
}

// hasWord finds w in b where no letter or digit is next to it.
func hasWord(b []byte, w string) bool {
	for {
		i := bytes.Index(b, []byte(w))
		if i < 0 {
			return false
		}
		end := i + len(w)
		if (i == 0 || !isAlnum(b[i-1])) && (end == len(b) || !isAlnum(b[end])) {
			return true
		}
		b = b[end:]
	}
}

func isAlnum(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}
