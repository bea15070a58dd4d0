package server

import (
	"context"
	"log/slog"
	"time"
	"unicode/utf8"

	"github.com/hashicorp/golang-lru/v2/expirable"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
)

// Event tells of what became of the pods of one owner.
type Event struct {
	// About is the object that people look at: the ReplicaSet, Job or the like,
	// or a pod that has none.
	About  corev1.ObjectReference
	Type   string // corev1.EventTypeNormal or EventTypeWarning
	Reason string
	Note   string // at most 1 kB, without values of the author's
}

// Reasons of events.
const (
	reasonInjected = "Injected"
	reasonSkipped  = "InjectionSkipped"
	reasonRefused  = "InjectionRefused"
)

const maxNote = 1000 // the API takes 1024 bytes

// eventOf makes an event about a pod's owner. It is nil if there is nobody to
// tell: the author of a pod of its own sees the answer.
func eventOf(q *request, pod map[string]any, reason, note string) *Event {
	about := owner(pod)
	if about == nil {
		return nil
	}
	about.Namespace = q.Namespace
	e := &Event{About: *about, Type: corev1.EventTypeNormal, Reason: reason, Note: note}
	if reason == reasonRefused {
		e.Type = corev1.EventTypeWarning
	}
	if len(e.Note) > maxNote {
		n := maxNote - len("…")
		for n > 0 && !utf8.RuneStart(e.Note[n]) {
			n--
		}
		e.Note = e.Note[:n] + "…"
	}
	return e
}

// owner returns the controller of a pod; nil if it has none.
func owner(pod map[string]any) *corev1.ObjectReference {
	meta, _ := pod["metadata"].(map[string]any)
	refs, _ := meta["ownerReferences"].([]any)
	for _, v := range refs {
		o, _ := v.(map[string]any)
		if on, _ := o["controller"].(bool); !on {
			continue
		}
		ref := &corev1.ObjectReference{}
		ref.APIVersion, _ = o["apiVersion"].(string)
		ref.Kind, _ = o["kind"].(string)
		ref.Name, _ = o["name"].(string)
		uid, _ := o["uid"].(string)
		ref.UID = types.UID(uid)
		if ref.Kind != "" && ref.Name != "" && uid != "" {
			return ref
		}
	}
	return nil
}

// Recorder writes events: events.EventRecorder of client-go.
type Recorder interface {
	Eventf(regarding, related runtime.Object, eventtype, reason, action, note string, args ...any)
}

// Bounds of what a storm of admissions can make of events.
const (
	maxEvents   = 1024 // waiting
	repeatAfter = 10 * time.Minute
	maxSeen     = 4096 // owners
)

// EventQueue writes events after their admissions were answered. An owner whose
// pods keep coming has one event of a kind in 10 minutes.
type EventQueue struct {
	queue   chan Event
	seen    *expirable.LRU[string, string] // owner and reason -> note
	metrics *Metrics
	log     *slog.Logger
}

// NewEventQueue makes a queue; Run empties it.
func NewEventQueue(m *Metrics, log *slog.Logger) *EventQueue {
	return &EventQueue{make(chan Event, maxEvents), expirable.NewLRU[string, string](maxSeen, nil, repeatAfter), m, log}
}

// Add queues an event, or drops it if too many wait.
func (q *EventQueue) Add(e Event) {
	select {
	case q.queue <- e:
	default:
		q.metrics.events.WithLabelValues("dropped").Inc()
	}
}

// Run writes events until ctx ends.
func (q *EventQueue) Run(ctx context.Context, to Recorder) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-q.queue:
			q.write(e, to)
		}
	}
}

func (q *EventQueue) write(e Event, to Recorder) {
	key := string(e.About.UID) + "/" + e.Reason
	if note, ok := q.seen.Get(key); ok && note == e.Note {
		q.metrics.events.WithLabelValues("repeated").Inc()
		return
	}
	q.seen.Add(key, e.Note)
	to.Eventf(&e.About, nil, e.Type, e.Reason, "Admission", "%s", e.Note)
	q.metrics.events.WithLabelValues("sent").Inc()
}
