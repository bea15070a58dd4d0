package awsscope

import (
	"slices"
	"strings"
)

// dynamo reads DynamoDB's item operations; false for the rest, which the rules do.
func (c *reading) dynamo() (bool, error) {
	switch c.op.name {
	case "GetItem", "PutItem", "UpdateItem", "DeleteItem":
		member := "Key"
		if c.op.name == "PutItem" {
			member = "Item"
		}
		return true, c.item(c.body, "dynamodb:"+c.op.name, member)
	case "Query":
		return true, c.queryTable()
	case "Scan":
		return true, c.table(c.body, "dynamodb:Scan", nil)
	case "BatchGetItem":
		return true, c.batch("dynamodb:BatchGetItem", c.batchGet)
	case "BatchWriteItem":
		return true, c.batch("dynamodb:BatchWriteItem", c.batchWrite)
	case "TransactGetItems", "TransactWriteItems":
		return true, c.transact()
	case "ExecuteStatement":
		s, _, err := c.str("Statement")
		if err != nil {
			return true, err
		}
		return true, c.partiQL(s)
	case "BatchExecuteStatement", "ExecuteTransaction":
		return true, c.partiQLs()
	}
	return false, nil
}

// tableARN reads a table's name or ARN.
func (c *reading) tableARN(v string) (Pattern, string, error) {
	if strings.HasPrefix(v, "arn:") {
		p, err := c.arn(v, "table/")
		_, name, _ := strings.Cut(v, ":table/")
		c.fact("table", name)
		return p, name, err
	}
	if strings.Trim(v, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-") != "" {
		return "", "", fail(ErrMalformed, "table name %q", v)
	}
	c.fact("table", v)
	return c.build("table/", v), v, nil
}

// table adds an action on the TableName (and IndexName) of an object.
func (c *reading) table(o *object, action string, conds []Condition) error {
	v, ok, err := o.text("TableName")
	if err != nil {
		return err
	}
	if !ok {
		return fail(ErrMalformed, "no TableName")
	}
	p, _, err := c.tableARN(v)
	if err != nil {
		return err
	}
	ix, ok, err := o.text("IndexName")
	if err != nil {
		return err
	}
	if ok {
		c.fact("index", ix)
		p += "/index/" + Literal(ix)
	}
	c.add(action, p, conds)
	return nil
}

func (c *reading) add(action string, p Pattern, conds []Condition) {
	c.call.Access = append(c.call.Access, Access{Action: action, Resources: []Pattern{p}, Conditions: conds})
}

// item adds an action on one item's table, narrowed to its partition key where
// the request tells which attribute that is.
func (c *reading) item(o *object, action, member string) error {
	key, err := o.child(member)
	if err != nil {
		return err
	}
	v, _, err := o.text("TableName")
	if err != nil {
		return err
	}
	_, name, err := c.tableARN(v)
	if err != nil {
		return err
	}
	return c.table(o, action, c.leading(name, []*object{key}, member == "Key"))
}

// leading is the condition that limits an access to the partition keys of
// items; nil if a key is not known.
func (c *reading) leading(table string, items []*object, isKey bool) []Condition {
	var vals []string
	for _, it := range items {
		v, ok := c.partitionKey(table, it, isKey)
		if !ok {
			return nil
		}
		vals = append(vals, v)
	}
	slices.Sort(vals)
	return leadingKeys(slices.Compact(vals))
}

func leadingKeys(vals []string) []Condition {
	if len(vals) == 0 {
		return nil
	}
	c := equals("dynamodb:LeadingKeys", vals...)[0]
	c.Operator = "ForAllValues:" + c.Operator
	// ForAllValues is true of no values too, hence the second line.
	return []Condition{c, {Operator: "Null", Key: "dynamodb:LeadingKeys", Values: []string{"false"}}}
}

// partitionKey finds the partition key's value: the attribute that the caller
// names for the table, or the only attribute of a Key.
func (c *reading) partitionKey(table string, item *object, isKey bool) (string, bool) {
	if item == nil {
		return "", false
	}
	if attr, ok := c.req.PartitionKeys[table]; ok {
		return attributeText(item.vals[attr])
	}
	if isKey && len(item.keys) == 1 {
		return attributeText(item.vals[item.keys[0]])
	}
	return "", false
}

// attributeText is an attribute value as dynamodb:LeadingKeys shows it: strings
// and plain integers; other numbers have several spellings, binary none here.
func attributeText(v any) (string, bool) {
	o, ok := v.(*object)
	if !ok || len(o.keys) != 1 {
		return "", false
	}
	s, ok := o.vals[o.keys[0]].(string)
	if !ok || checkValue("key", s) != nil {
		return "", false
	}
	switch o.keys[0] {
	case "S":
		return s, true
	case "N":
		digits := strings.TrimPrefix(s, "-")
		plain := digits != "" && len(digits) <= 38 && strings.Trim(digits, "0123456789") == "" && (digits[0] != '0' || s == "0")
		return s, plain
	}
	return "", false
}

// queryTable reads Query: the partition key is the value that its condition
// compares for equality.
func (c *reading) queryTable() error {
	var conds []Condition
	_, indexed, err := c.body.text("IndexName")
	if err != nil {
		return err
	}
	v, _, err := c.body.text("TableName")
	if err != nil {
		return err
	}
	expr, ok, err := c.body.text("KeyConditionExpression")
	if err != nil {
		return err
	}
	if ok {
		attr := ""
		if !indexed { // an index has a partition key of its own
			_, name, err := c.tableARN(v)
			if err != nil {
				return err
			}
			attr = c.req.PartitionKeys[name]
		}
		if val, ok := c.equality(expr, attr); ok {
			conds = leadingKeys([]string{val})
		}
	}
	return c.table(c.body, "dynamodb:Query", conds)
}

// equality finds the value of the one equality in `a = :v [AND range]`, the
// only grammar it knows.
func (c *reading) equality(expr, attr string) (string, bool) {
	f := strings.Fields(strings.NewReplacer(">=", " ge ", "<=", " le ", "=", " = ").Replace(expr))
	if len(f) < 3 || f[1] != "=" || !strings.HasPrefix(f[2], ":") || len(f) > 3 && !strings.EqualFold(f[3], "AND") {
		return "", false
	}
	rest := strings.Join(f[3:], " ")
	name := f[0]
	if strings.HasPrefix(name, "#") {
		names, err := c.body.child("ExpressionAttributeNames")
		if err != nil || names == nil {
			return "", false
		}
		name, _ = names.vals[name].(string)
	}
	switch {
	case attr != "" && name != attr:
		return "", false // the sort key comes first: not worth the grammar
	case attr == "" && (strings.Contains(rest, " = ") || strings.HasSuffix(rest, " =")):
		return "", false // two equalities: either may be the partition key
	case strings.ContainsAny(expr, "()") && strings.Contains(strings.ToUpper(expr), " OR "):
		return "", false
	}
	vals, err := c.body.child("ExpressionAttributeValues")
	if err != nil || vals == nil {
		return "", false
	}
	return attributeText(vals.vals[f[2]])
}

// batch walks RequestItems: a map from table to requests.
func (c *reading) batch(action string, keys func(table string, v any) ([]*object, bool, error)) error {
	tables, err := c.body.child("RequestItems")
	if err != nil {
		return err
	}
	if tables == nil || len(tables.keys) == 0 {
		return fail(ErrMalformed, "no RequestItems")
	}
	if len(tables.keys) > maxList {
		return tooLong("RequestItems")
	}
	for _, t := range tables.keys {
		p, name, err := c.tableARN(t)
		if err != nil {
			return err
		}
		items, isKey, err := keys(name, tables.vals[t])
		if err != nil {
			return err
		}
		c.add(action, p, c.leading(name, items, isKey))
	}
	return nil
}

func objects(v any) ([]*object, error) {
	list, ok := v.([]any)
	if !ok {
		return nil, fail(ErrMalformed, "RequestItems has no list")
	}
	if len(list) > maxList {
		return nil, tooLong("RequestItems")
	}
	var out []*object
	for _, e := range list {
		o, ok := e.(*object)
		if !ok {
			return nil, fail(ErrMalformed, "RequestItems has an element that is no structure")
		}
		out = append(out, o)
	}
	return out, nil
}

func (c *reading) batchGet(_ string, v any) ([]*object, bool, error) {
	o, ok := v.(*object)
	if !ok {
		return nil, false, fail(ErrMalformed, "RequestItems")
	}
	keys, _, err := o.get("Keys")
	if err != nil {
		return nil, false, err
	}
	items, err := objects(keys)
	return items, true, err
}

// batchWrite collects the items; puts have whole items, whose partition key
// only the caller can name.
func (c *reading) batchWrite(table string, v any) ([]*object, bool, error) {
	reqs, err := objects(v)
	if err != nil {
		return nil, false, err
	}
	var items []*object
	isKey := true
	for _, r := range reqs {
		if len(r.keys) != 1 {
			return nil, false, fail(ErrMalformed, "a write request has one member")
		}
		w, err := r.child(r.keys[0])
		if err != nil {
			return nil, false, err
		}
		member := "Key"
		if r.keys[0] == "PutRequest" {
			member = "Item"
			isKey = isKey && c.req.PartitionKeys[table] != ""
		}
		it, err := w.child(member)
		if err != nil {
			return nil, false, err
		}
		items = append(items, it)
	}
	return items, isKey, nil
}

// transact reads the list of TransactGetItems and TransactWriteItems; their
// IAM actions are those of the single operations.
func (c *reading) transact() error {
	list, err := c.list("TransactItems")
	if err != nil {
		return err
	}
	if len(list) == 0 {
		return fail(ErrMalformed, "no TransactItems")
	}
	actions := map[string][2]string{
		"Get": {"dynamodb:GetItem", "Key"}, "Put": {"dynamodb:PutItem", "Item"}, "Update": {"dynamodb:UpdateItem", "Key"},
		"Delete": {"dynamodb:DeleteItem", "Key"}, "ConditionCheck": {"dynamodb:ConditionCheckItem", "Key"},
	}
	for _, it := range list {
		if len(it.keys) != 1 {
			return fail(ErrMalformed, "an element of TransactItems has one member")
		}
		a, ok := actions[it.keys[0]]
		if !ok {
			return fail(ErrUnsupported, "%q in TransactItems", it.keys[0])
		}
		o, err := it.child(it.keys[0])
		if err != nil {
			return err
		}
		if err := c.item(o, a[0], a[1]); err != nil {
			return err
		}
	}
	return nil
}

// partiQL reads the verb of a statement; its table is left open.
func (c *reading) partiQL(s string) error {
	verb, _, _ := strings.Cut(strings.TrimSpace(s), " ")
	action := map[string]string{"SELECT": "PartiQLSelect", "INSERT": "PartiQLInsert", "UPDATE": "PartiQLUpdate", "DELETE": "PartiQLDelete"}[strings.ToUpper(verb)]
	if action == "" {
		return fail(ErrUnsupported, "PartiQL statement %q", verb)
	}
	c.call.ScopeKind = ScopeActionOnly
	c.add("dynamodb:"+action, c.build("table/")+"*", nil)
	return nil
}

func (c *reading) partiQLs() error {
	member := "Statements"
	if c.op.name == "ExecuteTransaction" {
		member = "TransactStatements"
	}
	list, err := c.list(member)
	if err != nil {
		return err
	}
	for _, o := range list {
		s, _, err := o.text("Statement")
		if err != nil {
			return err
		}
		if err := c.partiQL(s); err != nil {
			return err
		}
	}
	return nil
}
