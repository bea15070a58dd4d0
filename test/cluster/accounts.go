package cluster

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// serveAccounts makes the service account "default" in every namespace, until
// ctx ends: without it no pod is admitted, and the controller manager that
// does so elsewhere is not there.
func (e *Env) serveAccounts(ctx context.Context) error {
	client, err := kubernetes.NewForConfig(e.Config)
	if err != nil {
		return err
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	namespaces := factory.Core().V1().Namespaces().Informer()
	if _, err := namespaces.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) {
			if ns, ok := obj.(*corev1.Namespace); ok {
				_ = makeAccount(ctx, client, ns.Name) // Namespace, below, reports it
			}
		},
	}); err != nil {
		return err
	}
	e.accounts = make(chan struct{})
	factory.Start(ctx.Done())
	go func() {
		<-ctx.Done()
		factory.Shutdown()
		close(e.accounts)
	}()
	if !cache.WaitForCacheSync(ctx.Done(), namespaces.HasSynced) {
		return ctx.Err()
	}
	return nil
}

func makeAccount(ctx context.Context, client kubernetes.Interface, namespace string) error {
	sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default", Namespace: namespace}}
	_, err := client.CoreV1().ServiceAccounts(namespace).Create(ctx, sa, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("make the default service account of %s: %w", namespace, err)
	}
	return nil
}

// MakeNamespace makes a namespace with a name that begins with prefix and is
// nobody else's, and its default service account, and returns its name.
func (e *Env) MakeNamespace(ctx context.Context, prefix string, labels map[string]string) (string, error) {
	client, err := kubernetes.NewForConfig(e.Config)
	if err != nil {
		return "", err
	}
	ns, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{
		ObjectMeta: metav1.ObjectMeta{GenerateName: prefix + "-", Labels: labels},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("make a namespace: %w", err)
	}
	return ns.Name, makeAccount(ctx, client, ns.Name)
}
