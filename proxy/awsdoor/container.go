package awsdoor

import (
	"crypto/subtle"
	"encoding/json"
	"net/http"
)

// containerKeys is the answer of the container credentials endpoint (AWS SDKs
// and Tools Reference Guide, "Container credential provider").
type containerKeys struct {
	AccessKeyID     string `json:"AccessKeyId"`
	SecretAccessKey string
	Token           string
	Expiration      string
	RoleArn         string //nolint:revive // the wire's name
}

// containerError is its refusal, which SDKs print.
type containerError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// container answers GET ContainerPath with the authorization token that stands
// in the agent's environment.
func (d *Door) container(r *http.Request) Answer {
	const op = "container credentials"
	switch {
	case !d.rate.Allow():
		return refuseContainer(op, http.StatusTooManyRequests, "ThrottlingException", "too many requests; keep the credentials until they expire")
	case r.URL.Path != ContainerPath || r.URL.RawQuery != "":
		return refuseContainer(op, http.StatusNotFound, "NotFound", "ask for "+ContainerPath)
	case r.Method != http.MethodGet:
		return refuseContainer(op, http.StatusMethodNotAllowed, "MethodNotAllowed", "use GET")
	}
	token, ok := one(r.Header, "Authorization")
	if !ok || subtle.ConstantTimeCompare([]byte(token), []byte(d.c.Keys.Authorization)) != 1 {
		a := refuseContainer(op, http.StatusUnauthorized, "AccessDeniedException", "Authorization must be the value of AWS_CONTAINER_AUTHORIZATION_TOKEN")
		a.Ambient = true
		return a
	}
	k := d.c.Keys
	return Answer{Status: http.StatusOK, Type: "application/json", Operation: op, Body: marshal(containerKeys{
		AccessKeyID: k.AccessKeyID, SecretAccessKey: k.SecretAccessKey, Token: k.SessionToken,
		Expiration: d.expiration(validity), RoleArn: d.c.RoleARN})}
}

func refuseContainer(op string, status int, code, reason string) Answer {
	return Answer{Status: status, Type: "application/json", Operation: op, Reason: reason, Body: marshal(containerError{code, reason})}
}

// marshal writes structures of text only, which cannot fail.
func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("awsdoor: " + err.Error())
	}
	return b
}
