package audit

// appendActors writes the chain of agents; of a longer one its first maxActors-1
// and a mark.
func appendActors(b []byte, l []Actor) []byte {
	if len(l) == 0 {
		return b
	}
	b = append(b, `,"actors":`...)
	n := len(b)
	for i := range l {
		a := l[i]
		if i == maxActors-1 && len(l) > maxActors {
			a = Actor{Subject: ellipsis}
		}
		b = a.append(append(b, ','))
		if i == maxActors-1 {
			break
		}
	}
	b[n] = '['
	return append(b, ']')
}

func (a *Actor) append(b []byte) []byte {
	n := len(b)
	b = appendStr(b, `,"subject":`, a.Subject, maxURI)
	b = optStr(b, `,"issuer":`, a.Issuer, maxText)
	return closeObject(b, n)
}

func (q *SQL) append(b []byte) []byte {
	n := len(b)
	b = appendStr(b, `,"engine":`, q.Engine, maxWord)
	b = optStr(b, `,"session":`, q.Session, maxWord)
	b = optStr(b, `,"database":`, q.Database, maxName)
	b = optStr(b, `,"user":`, q.User, maxName)
	b = optStr(b, `,"operation":`, q.Operation, maxWord)
	b = optStr(b, `,"statement":`, q.Statement, maxCommand)
	b = optStr(b, `,"fingerprint":`, q.Fingerprint, maxDigest)
	b = optList(b, `,"tables":`, q.Tables, maxName, maxMany)
	b = optInt(b, `,"rows":`, q.Rows)
	b = optStr(b, `,"code":`, q.Code, maxWord)
	b = optStr(b, `,"application":`, q.Application, maxName)
	return closeObject(b, n)
}

func (h *SSH) append(b []byte) []byte {
	n := len(b)
	b = optStr(b, `,"session":`, h.Session, maxWord)
	b = appendStr(b, `,"operation":`, h.Operation, maxWord)
	b = optStr(b, `,"user":`, h.User, maxName)
	b = optStr(b, `,"command":`, h.Command, maxCommand)
	b = optStr(b, `,"subsystem":`, h.Subsystem, maxWord)
	b = optStr(b, `,"forward":`, h.Forward, maxText)
	b = optStr(b, `,"key_id":`, h.KeyID, maxText)
	b = optStr(b, `,"serial":`, h.Serial, maxWord)
	b = optStr(b, `,"fingerprint":`, h.Fingerprint, maxDigest)
	b = optList(b, `,"principals":`, h.Principals, maxName, maxFew)
	b = optStr(b, `,"host_key":`, h.HostKey, maxDigest)
	b = optStr(b, `,"exit_status":`, h.ExitStatus, maxWord)
	b = optStr(b, `,"exit_message":`, h.ExitMessage, maxName)
	return closeObject(b, n)
}

func (c *Change) append(b []byte) []byte {
	n := len(b)
	b = appendStr(b, `,"kind":`, c.Kind, maxWord)
	b = optStr(b, `,"namespace":`, c.Namespace, maxName)
	b = optStr(b, `,"name":`, c.Name, maxName)
	b = appendStr(b, `,"operation":`, c.Operation, maxWord)
	if c.By != nil {
		b = c.By.append(append(b, `,"by":`...))
	}
	b = optStr(b, `,"version_before":`, c.VersionBefore, maxDigest)
	b = optStr(b, `,"version_after":`, c.VersionAfter, maxDigest)
	b = optStr(b, `,"diff":`, c.Diff, maxDiff)
	b = optStr(b, `,"text":`, c.Text, maxDocument)
	b = optStr(b, `,"beneficiary":`, c.Beneficiary, maxURI)
	return closeObject(b, n)
}

func (p *Principal) append(b []byte) []byte {
	n := len(b)
	b = appendStr(b, `,"username":`, p.Username, maxPolicy)
	b = optStr(b, `,"uid":`, p.UID, maxName)
	b = optList(b, `,"groups":`, p.Groups, maxName, maxMany)
	return closeObject(b, n)
}
