package policy

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"

	"github.com/attache-dev/attache/identity"
)

// typePrefix stands before the type names of the objects.
const typePrefix = "attache."

// object is a variable of expressions with its fields.
type object struct {
	name   string
	fields []field
}

// field is one field of an object. Its getter never fails: what is not there
// reads as the zero value, and has() tells the difference.
type field struct {
	name string
	typ  *types.Type
	get  func(*activation) any
}

func (o *object) celType() *cel.Type { return cel.ObjectType(typePrefix + o.name) }

func (o *object) fieldNames() []string {
	names := make([]string, len(o.fields))
	for i, f := range o.fields {
		names[i] = f.name
	}
	return names
}

// objects declares every variable but time; docs/policy.md has the table.
func objects() []object {
	strs := types.NewListType(types.StringType)
	strMap := types.NewMapType(types.StringType, types.StringType)
	queryMap := types.NewMapType(types.StringType, strs)
	return []object{
		{"request", []field{
			{"host", types.StringType, func(a *activation) any { return a.r.Host }},
			{"port", types.IntType, func(a *activation) any { return int64(a.r.Port) }},
			{"scheme", types.StringType, func(a *activation) any { return a.r.Scheme }},
			{"method", types.StringType, func(a *activation) any { return a.r.Method }},
			{"path", types.StringType, func(a *activation) any { return a.path }},
			{"query", queryMap, func(a *activation) any { return map[string][]string(a.r.Query) }},
			{"headers", strMap, func(a *activation) any { return a.headers() }},
			{"protocol", types.StringType, func(a *activation) any { return protocolOf(a.r) }},
		}},
		{"workload", []field{
			{"id", types.StringType, func(a *activation) any { return a.r.Workload.ID.String() }},
			{"trustDomain", types.StringType, func(a *activation) any { return a.r.Workload.ID.TrustDomain().Name() }},
			{"namespace", types.StringType, func(a *activation) any { return a.r.Workload.Namespace }},
			{"serviceAccount", types.StringType, func(a *activation) any { return a.r.Workload.ServiceAccount }},
			{"labels", strMap, func(a *activation) any { return a.r.Workload.Labels }},
			{"images", strs, func(a *activation) any { return a.r.Workload.Images }},
			{"node", types.StringType, func(a *activation) any { return a.r.Workload.Node }},
			{"posture", strMap, func(a *activation) any { return a.r.Workload.Posture }},
			{"owner", types.StringType, func(a *activation) any { return a.r.Workload.Owner }},
			{"runID", types.StringType, func(a *activation) any { return a.r.Workload.RunID }},
		}},
		{"process", []field{
			{"pid", types.IntType, func(a *activation) any { return int64(a.r.Process.PID) }},
			{"uid", types.IntType, func(a *activation) any { return int64(a.r.Process.UID) }},
			{"exe", types.StringType, func(a *activation) any { return a.r.Process.Exe }},
			{"digest", types.StringType, func(a *activation) any { return a.r.Process.Digest }},
		}},
		{"task", []field{
			{"open", types.BoolType, func(a *activation) any { return a.r.Task != nil }},
			{"id", types.StringType, func(a *activation) any { return a.task().ID }},
			{"purpose", types.StringType, func(a *activation) any { return a.task().Purpose }},
			{"openedBy", types.StringType, func(a *activation) any { return a.task().OpenedBy }},
			{"expires", types.TimestampType, func(a *activation) any { return a.task().Expires }},
		}},
		{"human", []field{
			{"present", types.BoolType, func(a *activation) any { return a.task().Human != nil }},
			{"subject", types.StringType, func(a *activation) any { return a.human().Subject }},
			{"issuer", types.StringType, func(a *activation) any { return a.human().Issuer }},
			{"email", types.StringType, func(a *activation) any { return a.human().Email }},
			{"groups", strs, func(a *activation) any { return a.human().Groups }},
		}},
	}
}

// provider types the objects, so that a misspelt field is found when a policy
// is compiled, and reads their fields without reflection.
type provider struct {
	*types.Registry
	objects map[string]object
	fields  map[[2]string]*types.FieldType
}

func newProvider() *provider {
	p := &provider{Registry: types.NewEmptyRegistry(), objects: map[string]object{}, fields: map[[2]string]*types.FieldType{}}
	for _, o := range objects() {
		p.objects[typePrefix+o.name] = o
		for _, f := range o.fields {
			p.fields[[2]string{typePrefix + o.name, f.name}] = f.fieldType()
		}
	}
	return p
}

func (f field) fieldType() *types.FieldType {
	return &types.FieldType{
		Type: f.typ,
		IsSet: func(target any) bool {
			a, ok := target.(*activation)
			return ok && !isZero(f.get(a))
		},
		GetFrom: func(target any) (any, error) {
			a, ok := target.(*activation)
			if !ok {
				return nil, fmt.Errorf("no such field %q", f.name)
			}
			return f.get(a), nil
		},
	}
}

// isZero is what has() denies.
func isZero(v any) bool {
	switch v := v.(type) {
	case string:
		return v == ""
	case time.Time:
		return v.IsZero()
	case bool:
		return !v
	case []string:
		return len(v) == 0
	case map[string]string:
		return len(v) == 0
	case map[string][]string:
		return len(v) == 0
	}
	return v == int64(0)
}

// FindStructType implements types.Provider.
func (p *provider) FindStructType(name string) (*types.Type, bool) {
	if _, ok := p.objects[name]; ok {
		return types.NewTypeTypeWithParam(types.NewObjectType(name)), true
	}
	return p.Registry.FindStructType(name)
}

// FindStructFieldNames implements types.Provider.
func (p *provider) FindStructFieldNames(name string) ([]string, bool) {
	if o, ok := p.objects[name]; ok {
		return o.fieldNames(), true
	}
	return p.Registry.FindStructFieldNames(name)
}

// FindStructFieldType implements types.Provider.
func (p *provider) FindStructFieldType(name, fieldName string) (*types.FieldType, bool) {
	if f, ok := p.fields[[2]string{name, fieldName}]; ok {
		return f, true
	}
	return p.Registry.FindStructFieldType(name, fieldName)
}

// NewValue implements types.Provider: expressions cannot make objects.
func (p *provider) NewValue(name string, fields map[string]ref.Val) ref.Val {
	if _, ok := p.objects[name]; ok {
		return types.NewErr("%s cannot be made", name)
	}
	return p.Registry.NewValue(name, fields)
}

// view is an object of one activation as a value of the language.
type view struct {
	typ *types.Type
	a   *activation
}

// ConvertToNative implements ref.Val.
func (v *view) ConvertToNative(t reflect.Type) (any, error) {
	return nil, fmt.Errorf("%s does not convert to %v", v.typ, t)
}

// ConvertToType implements ref.Val.
func (v *view) ConvertToType(t ref.Type) ref.Val {
	if t == types.TypeType {
		return v.typ
	}
	return types.NewErr("%s does not convert to %s", v.typ, t.TypeName())
}

// Equal implements ref.Val: there is one object of each type.
func (v *view) Equal(other ref.Val) ref.Val {
	return types.Bool(v.typ.TypeName() == other.Type().TypeName())
}

// Type implements ref.Val.
func (v *view) Type() ref.Type { return v.typ }

// Value implements ref.Val.
func (v *view) Value() any { return v.a }

// activation shows one request to expressions. It is pooled.
type activation struct {
	r      *Request
	path   string
	header map[string]string // made on first use
	views  map[string]*view
}

func newActivation() *activation {
	a := &activation{views: map[string]*view{}}
	for _, o := range objects() {
		a.views[o.name] = &view{typ: types.NewObjectType(typePrefix + o.name), a: a}
	}
	return a
}

// activations pools them; a pool is the one kind of shared state that no
// decision can see.
type activations struct{ pool sync.Pool }

func (p *activations) get(r *Request, path string) *activation {
	a, ok := p.pool.Get().(*activation)
	if !ok {
		a = newActivation()
	}
	a.r, a.path = r, path
	return a
}

func (p *activations) put(a *activation) {
	a.r, a.path, a.header = nil, "", nil
	p.pool.Put(a)
}

// ResolveName implements cel.Activation.
func (a *activation) ResolveName(name string) (any, bool) {
	if v, ok := a.views[name]; ok {
		return v, true
	}
	if name == "time" {
		return types.Timestamp{Time: a.r.Time}, true
	}
	return nil, false
}

// Parent implements cel.Activation.
func (a *activation) Parent() cel.Activation { return nil }

func (a *activation) task() identity.Task {
	if a.r.Task == nil {
		return identity.Task{}
	}
	return *a.r.Task
}

func (a *activation) human() identity.Human {
	if a.r.Task == nil || a.r.Task.Human == nil {
		return identity.Human{}
	}
	return *a.r.Task.Human
}

// headers joins the values of each header with ", " (RFC 9110 section 5.3) and
// leaves out those that hold credentials. X_Mode counts as X-Mode, see
// headerValues.
func (a *activation) headers() map[string]string {
	if a.header == nil {
		a.header = make(map[string]string, len(a.r.Header))
		for _, name := range slices.Sorted(maps.Keys(a.r.Header)) {
			lower := strings.ReplaceAll(strings.ToLower(name), "_", "-")
			if isCredentialHeader(lower) {
				continue
			}
			value := strings.Join(a.r.Header[name], ", ")
			if before, ok := a.header[lower]; ok {
				value = before + ", " + value
			}
			a.header[lower] = value
		}
	}
	return a.header
}

// isCredentialHeader reports the headers that carry an agent's credentials;
// what they hold must not decide anything, for it is about to be removed.
func isCredentialHeader(lower string) bool {
	switch lower {
	case "authorization", "proxy-authorization", "cookie", "set-cookie", "x-api-key", "api-key", "x-goog-api-key",
		"x-amz-security-token", "x-auth-token", "x-access-token", "private-token", "job-token", "x-vault-token",
		"x-github-token", "x-csrf-token", "x-apikey", "apikey", "x-token", "ocp-apim-subscription-key", "dpop":
		return true
	}
	return false
}

// protocolOf names a request's protocol; plain requests may leave it empty.
func protocolOf(r *Request) string {
	if r.Protocol == "" {
		return HTTP
	}
	return r.Protocol
}
