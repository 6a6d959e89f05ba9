// Makes the vectors in this directory. See README.md.
'use strict';
const crypto = require('crypto');
const fs = require('fs');
const path = require('path');
const nock = require('nock');
const mock = require('@sigstore/mock');
const { bundleToJSON } = require('@sigstore/bundle');
const sign = require('@sigstore/sign');

const FULCIO = 'https://fulcio.example';
const REKOR = 'https://rekor.example';
const TSA = 'https://tsa.example';
const IDENTITY = 'https://git.example/team/app/.ci/release.yml@refs/tags/v1';
const ISSUER = 'https://issuer.example';
const PREDICATE = 'https://sigstore.dev/cosign/sign/v1';
const MANIFEST = Buffer.from('{"schemaVersion":2,"test":"manifest of the image that was signed"}');

const key = () => crypto.generateKeyPairSync('ec', { namedCurve: 'prime256v1' });
const spki = (pair) => pair.publicKey.export({ format: 'der', type: 'spki' });
const sha256 = (bytes) => crypto.createHash('sha256').update(bytes).digest();
const serve = (base, handler) =>
  nock(base).persist().post(handler.path).reply(async (_, body) => {
    const text = typeof body === 'string' ? body : JSON.stringify(body);
        const answer = await handler.fn(text);
    return [answer.statusCode, answer.response, { 'Content-Type': answer.contentType || 'text/plain' }];
  });
// The mock logs what is proposed. A real log keeps hashes of it, and that is what verifiers read.
const stored = (entry) => {
  if (entry.kind === 'intoto') {
    delete entry.spec.content.envelope.payload;
  }
  if (entry.kind === 'dsse') {
    const { envelope, verifiers } = entry.spec.proposedContent;
    const { payload, signatures } = JSON.parse(envelope);
    const hash = (bytes) => ({ algorithm: 'sha256', value: sha256(bytes).toString('hex') });
    entry.spec = {
      envelopeHash: hash(Buffer.from(envelope)),
      payloadHash: hash(Buffer.from(payload, 'base64')),
      signatures: signatures.map(({ sig }, at) => ({ signature: sig, verifier: verifiers[at] })),
    };
  }
  return entry;
};
const write = (name, value) =>
  fs.writeFileSync(path.join(__dirname, name), Buffer.isBuffer(value) ? value : JSON.stringify(value));

// The bundle with the entry that a log of the second generation would have made: no promise and no
// time, but a proof in a tree (here of two entries), and other fields in the entry.
function rekor2(bundle, rekorKey) {
  const material = bundle.verificationMaterial;
  const { payload, signatures } = bundle.dsseEnvelope;
  const body = Buffer.from(JSON.stringify({
    apiVersion: '0.0.2',
    kind: 'dsse',
    spec: {
      dsseV002: {
        payloadHash: { algorithm: 'SHA2_256', digest: sha256(Buffer.from(payload, 'base64')).toString('base64') },
        signatures: [{
          content: signatures[0].sig,
          verifier: {
            keyDetails: 'PKIX_ECDSA_P256_SHA_256',
            x509Certificate: { rawBytes: material.certificate.rawBytes },
          },
        }],
      },
    },
  }));
  const leaf = (entry) => sha256(Buffer.concat([Buffer.from([0]), entry]));
  const before = leaf(Buffer.from('another entry'));
  const root = sha256(Buffer.concat([Buffer.from([1]), before, leaf(body)]));
  const note = `rekor.example\n2\n${root.toString('base64')}\n`;
  const signature = Buffer.concat([Buffer.alloc(4), crypto.sign('sha256', Buffer.from(note), rekorKey.privateKey)]);
  material.tlogEntries = [{
    logIndex: '1',
    logId: { keyId: sha256(spki(rekorKey)).toString('base64') },
    kindVersion: { kind: 'dsse', version: '0.0.2' },
    canonicalizedBody: body.toString('base64'),
    inclusionProof: {
      logIndex: '1',
      rootHash: root.toString('base64'),
      treeSize: '2',
      hashes: [before.toString('base64')],
      checkpoint: { envelope: `${note}\n\u2014 rekor.example ${signature.toString('base64')}\n` },
    },
  }];
  return bundle;
}

async function main() {
  const [fulcioKey, ctKey, rekorKey, tsaKey] = [key(), key(), key(), key()];
  const ctLog = await mock.initializeCTLog(ctKey);
  const ca = await mock.initializeCA(fulcioKey, ctLog);
  const tlog = await mock.initializeTLog(REKOR, rekorKey);
  const tsa = await mock.initializeTSA(tsaKey);
  serve(FULCIO, mock.fulcioHandler(ca, { strict: true }));
  const keeper = { publicKey: tlog.publicKey, log: (entry) => tlog.log(stored(entry)) };
  serve(REKOR, mock.rekorHandler(keeper, { strict: true }));
  serve(TSA, mock.tsaHandler(tsa, { strict: true }));

  const claims = Buffer.from(JSON.stringify({ sub: IDENTITY, iss: ISSUER, aud: 'sigstore' })).toString('base64url');
  const token = `${Buffer.from('{"alg":"none"}').toString('base64url')}.${claims}.`;
  const signer = () => new sign.FulcioSigner({
    fulcioBaseURL: FULCIO,
    identityProvider: { getToken: async () => token },
  });
  const rekor = (entryType) => new sign.RekorWitness({ rekorBaseURL: REKOR, entryType });
  const timestamps = () => new sign.TSAWitness({ tsaBaseURL: TSA });

  const statement = (predicateType) => ({
    type: 'application/vnd.in-toto+json',
    data: Buffer.from(JSON.stringify({
      _type: 'https://in-toto.io/Statement/v1',
      subject: [{ digest: { sha256: sha256(MANIFEST).toString('hex') } }],
      predicateType,
      predicate: {},
    })),
  });
  const dsse = async (name, witnesses, options = {}, predicate = PREDICATE) => {
    const builder = new sign.DSSEBundleBuilder({ signer: signer(), witnesses, ...options });
    write(name, bundleToJSON(await builder.create(statement(predicate))));
  };
  await dsse('dsse.json', [rekor('dsse'), timestamps()]);
  await dsse('intoto.json', [rekor('intoto')]);
  await dsse('timestamp-only.json', [timestamps()]);
  await dsse('chain.json', [rekor('dsse')], { certificateChain: true });
  await dsse('provenance.json', [rekor('dsse')], {}, 'https://slsa.dev/provenance/v1');
  write('rekor2.json', rekor2(JSON.parse(fs.readFileSync(path.join(__dirname, 'dsse.json'))), rekorKey));
  const message = new sign.MessageSignatureBundleBuilder({ signer: signer(), witnesses: [rekor()] });
  write('message.json', bundleToJSON(await message.create({ data: MANIFEST })));

  const start = new Date(Date.now() - 60_000).toISOString();
  const certificate = (der) => ({ rawBytes: Buffer.from(der).toString('base64') });
  const log = (pair) => ({
    baseUrl: 'https://log.example',
    hashAlgorithm: 'SHA2_256',
    publicKey: {
      rawBytes: spki(pair).toString('base64'),
      keyDetails: 'PKIX_ECDSA_P256_SHA_256',
      validFor: { start },
    },
    logId: { keyId: sha256(spki(pair)).toString('base64') },
  });
  const authority = (certificates) => ({
    subject: { organization: 'test', commonName: 'test' },
    uri: 'https://authority.example',
    certChain: { certificates },
    validFor: { start },
  });
  write('trusted_root.json', {
    mediaType: 'application/vnd.dev.sigstore.trustedroot+json;version=0.1',
    tlogs: [log(rekorKey)],
    certificateAuthorities: [authority([certificate(ca.rootCertificate)])],
    ctlogs: [log(ctKey)],
    timestampAuthorities: [authority([certificate(tsa.intCertificate), certificate(tsa.rootCertificate)])],
  });
  write('manifest.json', MANIFEST);
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
